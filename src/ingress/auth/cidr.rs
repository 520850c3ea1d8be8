//! The networks that may send. Behind proxies, whose word is taken for it, the address that the first of them saw.

use super::Head;
use super::settings::{Config, Problem};
use crate::http;
use crate::setting::{List, Network};
use hyper::header::{self, HeaderName};
use std::net::{IpAddr, SocketAddr};

/// What most proxies send.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

#[derive(Debug)]
pub struct Cidr {
    networks: Vec<Network>,
    trusted: Vec<Network>,
    header: HeaderName,
}

impl Cidr {
    pub fn open(config: &Config) -> Result<Self, Problem> {
        let trusted = networks("trusted_proxies", &config.trusted_proxies)?;
        if config.header.is_some() && trusted.is_empty() {
            let problem = "is missing; without it nobody is believed who says in `header` where a request came from";
            return Err(Problem::new("trusted_proxies", problem));
        }
        let header = config.header(Some(X_FORWARDED_FOR.as_str()))?;
        if header != X_FORWARDED_FOR && header != header::FORWARDED {
            let problem = format!("found \"{header}\"; allowed are \"x-forwarded-for\" and \"forwarded\"");
            return Err(Problem::new("header", problem));
        }
        Ok(Self { networks: networks("networks", &config.networks)?, trusted, header })
    }

    pub fn check(&self, head: &Head<'_>) -> Result<(), &'static str> {
        let sender = self.sender(head)?;
        if Network::any_holds(&self.networks, sender) { Ok(()) } else { Err("the address is in none of the networks") }
    }

    /// The peer, or, if that is a proxy of ours, whom it speaks for: from the last hop back to the first that is not ours. What
    /// stands before that one anybody could have written.
    fn sender(&self, head: &Head<'_>) -> Result<IpAddr, &'static str> {
        let mut sender = head.peer.to_canonical();
        if !Network::any_holds(&self.trusted, sender) {
            return Ok(sender);
        }
        let mut hops = Vec::new();
        for value in head.request.values(&self.header) {
            let value = http::text(value).ok_or("what the proxy says is no text")?;
            if self.header == header::FORWARDED {
                hops.extend(forwarded(value));
            } else {
                hops.extend(value.split(',').map(|hop| Some(hop.trim())));
            }
        }
        for hop in hops.into_iter().rev() {
            sender = hop.and_then(address).ok_or("what the proxy says is no address")?;
            if !Network::any_holds(&self.trusted, sender) {
                break;
            }
        }
        Ok(sender)
    }
}

fn networks(key: &str, texts: &List<String>) -> Result<Vec<Network>, Problem> {
    texts.0.iter().map(|text| text.parse().map_err(|problem: String| Problem::new(key, problem))).collect()
}

/// An address, with a port or without, in brackets or without.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// The `for` of each element (RFC 7239, section 4); `None` where there is none. A quote that is not closed could swallow what a
/// proxy has put behind it: then nothing is believed.
fn forwarded(value: &str) -> Vec<Option<&str>> {
    let Some(elements) = unquoted_split(value, ',') else { return vec![None] };
    let client = |element| {
        unquoted_split(element, ';')?.into_iter().find_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            let value =
                value.trim().strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value.trim());
            name.eq_ignore_ascii_case("for").then_some(value)
        })
    };
    elements.into_iter().map(client).collect()
}

/// The parts between separators that do not stand within quotes; `None` if a quote is not closed.
fn unquoted_split(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut quoted, mut escaped) = (false, false);
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if character == separator && !quoted => {
                parts.push(text.get(start..at)?);
                start = at + character.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text.get(start..)?);
    (!quoted).then_some(parts)
}
