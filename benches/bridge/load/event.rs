//! An event that is sent.

/// A call detail record as TeleCMI documents it, of about so many bytes.
pub fn text(call: &str, conversation: &str, bytes: usize) -> String {
    let mut text = format!(
        "{{\"virtual_number\":440000000001,\"appid\":2222223,\"type\":\"cdr\",\"direction\":\"inbound\",\"cmiuuid\":\"{call}\",\
         \"status\":\"missed\",\"from\":440000000000,\"time\":1634721099442,\"waitedsec\":127,\"hangup_reason\":\"recv_bye\",\
         \"voicemail\":true,\"voicename\":\"1634721220656289350027_2222223.mp3\",\"conversation_uuid\":\"{conversation}\",\
         \"team\":\"Sales_2222223\",\"ivr_name\":\"salesivr\",\"custom\":\""
    );
    text.extend(std::iter::repeat_n('x', bytes.saturating_sub(text.len() + 2)));
    text + "\"}"
}
