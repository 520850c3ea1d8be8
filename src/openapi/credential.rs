//! The credentials that a check asks for, without any secret.

use crate::ingress::auth::Config;

/// The credentials of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Where they are presented.
    pub place: Place,
    /// A description.
    pub text: String,
    /// Header fields beside them, with a description each.
    pub beside: Vec<(String, &'static str)>,
}

/// Where a request presents its credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In place of `{secret}` in the path.
    Path,
    /// In this query parameter.
    Query(String),
    /// In this header field.
    Header(String),
    /// `Authorization: Bearer …`
    Bearer,
    /// `Authorization: Basic …`
    Basic,
    /// In the events, or in the address of the sender.
    Elsewhere,
}

impl Credential {
    /// The credentials of this check.
    pub fn of(config: &Config) -> Self {
        let seconds = "Seconds since 1970 when the request was made.";
        let mut beside = Vec::new();
        let (place, text) = match config {
            Config::Path(_) => (Place::Path, "A secret."),
            Config::Query(own) => (Place::Query(own.parameter.clone()), "A secret."),
            Config::Header(own) => (Place::Header(own.header.to_string()), "A secret."),
            Config::Bearer(_) => (Place::Bearer, "A secret."),
            Config::Basic(_) => (Place::Basic, "A user and a secret."),
            Config::Hmac(own) | Config::Github(own) | Config::Shopify(own) => {
                beside.extend(own.timestamp_header.iter().map(|name| (name.to_string(), seconds)));
                (Place::Header(own.header.to_string()), "An HMAC over the body as it is sent.")
            }
            Config::StandardWebhooks(_) => {
                beside.push(("webhook-id".to_owned(), "The id of the message."));
                beside.push(("webhook-timestamp".to_owned(), seconds));
                let text = "A signature as of https://www.standardwebhooks.com, version `v1`.";
                (Place::Header("webhook-signature".to_owned()), text)
            }
            Config::Twilio(_) => (
                Place::Header("x-twilio-signature".to_owned()),
                "A signature over URL and parameters, as Twilio makes it.",
            ),
            Config::AppId(_) => (Place::Elsewhere, "Every event has to have one of the allowed `appid`."),
            Config::Cidr(_) => (Place::Elsewhere, "Requests have to come from one of the allowed networks."),
        };
        Self { place, text: text.to_owned(), beside }
    }
}
