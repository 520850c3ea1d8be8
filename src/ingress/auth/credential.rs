//! What a sender has to show, told without any secret: for the description of the API.

use super::settings::{Algorithm, Config, Encoding, Type};
use super::{hmac, standard_webhooks, twilio};

/// What one check asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Where it is shown.
    pub place: Place,
    /// What that is.
    pub text: String,
    /// Header fields that it needs beside itself, and what they are.
    pub beside: Vec<(String, &'static str)>,
}

/// Where a request shows who sent it.
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
    /// Nowhere in particular: in what is sent, or where it comes from.
    Elsewhere,
}

impl Config {
    /// What a request has to show.
    pub fn credential(&self) -> Credential {
        let header = self.header.clone().unwrap_or_default();
        let (place, text) = match self.r#type {
            Type::Path => (Place::Path, "A secret.".to_owned()),
            Type::Query => (Place::Query(self.parameter.clone().unwrap_or_default()), "A secret.".to_owned()),
            Type::Header => (Place::Header(header), "A secret.".to_owned()),
            Type::Bearer => (Place::Bearer, "A secret.".to_owned()),
            Type::Basic => (Place::Basic, "A user and a secret.".to_owned()),
            Type::Hmac | Type::Github | Type::Shopify => {
                let (own, ..) = hmac::form(self);
                (Place::Header(own.map_or(header, str::to_owned)), self.signature())
            }
            Type::StandardWebhooks => (
                Place::Header(standard_webhooks::SIGNATURE.to_string()),
                "A signature as of https://www.standardwebhooks.com, version `v1`.".to_owned(),
            ),
            Type::Twilio => (
                Place::Header(twilio::SIGNATURE.to_string()),
                "A signature over URL and parameters, as Twilio makes it.".to_owned(),
            ),
            Type::AppId => (Place::Elsewhere, "Every event has to have one of the allowed `appid`.".to_owned()),
            Type::Cidr => (Place::Elsewhere, "Requests have to come from one of the allowed networks.".to_owned()),
        };
        let seconds = "Seconds since 1970 when the request was made.";
        let beside = match self.r#type {
            Type::Hmac => self.timestamp_header.iter().map(|name| (name.clone(), seconds)).collect(),
            Type::StandardWebhooks => vec![
                (standard_webhooks::ID.to_string(), "The id of the message."),
                (standard_webhooks::TIMESTAMP.to_string(), seconds),
            ],
            _ => Vec::new(),
        };
        Credential { place, text, beside }
    }

    /// How to sign.
    fn signature(&self) -> String {
        let (_, encoding, prefix) = hmac::form(self);
        let algorithm = match self.algorithm.unwrap_or(Algorithm::Sha256) {
            Algorithm::Sha1 => "SHA-1",
            Algorithm::Sha256 => "SHA-256",
            Algorithm::Sha512 => "SHA-512",
        };
        let encoding = match encoding {
            Encoding::Hex => "hexadecimal digits",
            Encoding::Base64 => "Base64",
        };
        let prefix = if prefix.is_empty() { String::new() } else { format!(" behind `{prefix}`") };
        let signed = hmac::signed(self);
        format!("The HMAC-{algorithm} of `{signed}` in {encoding}{prefix}; `{{body}}` is the body as it is sent.")
    }
}
