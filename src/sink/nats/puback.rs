//! What a stream says of a message: a PubAck, or why there is none.

use crate::sink::Failure;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;

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
        assert!(matches!(ack("+OK"), Err(Failure::Unavailable { .. })));
        assert!(matches!(ack("{}"), Err(Failure::Unavailable { .. })));
    }
}
