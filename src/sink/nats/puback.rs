//! What a stream says of a message: a PubAck, or why there is none.

use crate::event::json::{Kind, Reader};
use crate::sink::Failure;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;

/// Whether a reply says that the message is stored: it is a PubAck and tells stream and sequence. Of any other, [`acknowledged`] has to
/// say what it means.
pub(super) fn confirms(reply: &async_nats::Message) -> bool {
    let Ok(text) = std::str::from_utf8(&reply.payload) else { return false };
    let (mut reader, mut stored) = (Reader::new(text, 4), [false; 2]);
    let read = reader.members(|reader, name| {
        let value = reader.value()?;
        match name.span.of(text.as_bytes()) {
            b"stream" => stored[0] = value.kind == Kind::String,
            b"seq" => stored[1] = value.kind == Kind::Number,
            b"error" => return Err(reader.error("no PubAck")),
            _ => {}
        }
        Ok(())
    });
    reply.status.is_none() && stored == [true; 2] && read.is_ok() && reader.peek().is_none()
}

/// Reads a PubAck; a duplicate is as good as stored. Of the errors, only those that no retry and no operator can mend on the
/// server's side are the message's own.
pub(super) fn acknowledged(payload: &[u8]) -> Result<(), Failure> {
    match serde_json::from_slice::<Response<PublishAck>>(payload) {
        Ok(Response::Ok(_)) => Ok(()),
        Ok(Response::Err { error }) => match error.error_code() {
            ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
                Err(Failure::rejected(format!("the stream refuses the message: {error}")))
            }
            _ => Err(Failure::unavailable(format!("the stream does not take messages: {error}"))),
        },
        Err(_) => Err(Failure::unavailable(
            "something other than JetStream answers on this subject; no stream confirmed the message",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::StatusCode;
    use bytes::Bytes;

    #[test]
    fn only_what_no_operator_can_mend_is_rejected() {
        let ack = |text: &str| acknowledged(text.as_bytes());
        assert_eq!(ack(r#"{"stream":"A","seq":7}"#), Ok(()));
        assert_eq!(ack(r#"{"stream":"A","seq":7,"duplicate":true,"domain":"hub"}"#), Ok(()));
        let error = |code: u64| {
            format!(r#"{{"error":{{"code":400,"err_code":{code},"description":"x"}},"stream":"A","seq":0}}"#)
        };
        for code in [10054, 10097] {
            assert!(matches!(ack(&error(code)), Err(Failure::Rejected { .. })), "{code}");
        }
        for code in [0, 10023, 10047, 10060, 10077, 99999] {
            assert!(matches!(ack(&error(code)), Err(Failure::Unavailable { .. })), "{code}");
        }
        for text in [r#"{"stream":"A","seq":7}"#, r#"{"stream":"A", "seq":7,"duplicate":true,"domain":"hub"}"#] {
            assert!(confirms(&reply(text, None)), "{text}");
            assert!(!confirms(&reply(text, Some(StatusCode::NO_RESPONDERS))), "{text}");
        }
        let refused =
            [error(10077), error(0), "+OK".into(), "{}".into(), String::new(), r#"{"stream":"A","seq":7"#.into()];
        for text in refused {
            assert!(!confirms(&reply(&text, None)), "{text}");
        }
        assert!(matches!(ack("+OK"), Err(Failure::Unavailable { .. })));
        assert!(matches!(ack("{}"), Err(Failure::Unavailable { .. })));
    }

    fn reply(payload: &str, status: Option<StatusCode>) -> async_nats::Message {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        let (reply, headers, description) = (None, None, None);
        async_nats::Message { subject: "a.1".into(), reply, payload, headers, status, description, length: 0 }
    }
}
