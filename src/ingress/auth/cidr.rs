//! The networks that may send. Behind trusted proxies, the address that the first of them saw counts.

use super::Head;
use super::config::{Cidr, ForwardingHeader};
use crate::setting::Network;
use hyper::header::{self, HeaderName};
use std::net::{IpAddr, SocketAddr};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl Cidr {
    pub fn check(&self, head: &Head<'_>) -> Result<(), &'static str> {
        let sender = self.sender(head)?;
        if Network::any_holds(&self.networks.0, sender) {
            Ok(())
        } else {
            Err("the address is in none of the networks")
        }
    }

    /// The peer, or, if the peer is a trusted proxy, the last hop that is not a trusted proxy. A sender can forge the hops before it.
    fn sender(&self, head: &Head<'_>) -> Result<IpAddr, &'static str> {
        let mut sender = head.peer.to_canonical();
        if !Network::any_holds(&self.trusted_proxies.0, sender) {
            return Ok(sender);
        }
        let forwarded = self.header == Some(ForwardingHeader::Forwarded);
        let name = if forwarded { &header::FORWARDED } else { &X_FORWARDED_FOR };
        let mut hops = Vec::new();
        for value in head.values(name) {
            let value = str::from_utf8(value).map_err(|_| "the proxy's header field is not text")?;
            if forwarded {
                hops.extend(forwarded_for(value));
            } else {
                hops.extend(value.split(',').map(|hop| Some(hop.trim())));
            }
        }
        for hop in hops.into_iter().rev() {
            sender = hop.and_then(address).ok_or("the proxy's header field holds no address")?;
            if !Network::any_holds(&self.trusted_proxies.0, sender) {
                break;
            }
        }
        Ok(sender)
    }
}

/// An address, with a port or without, in brackets or without.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// The `for` of each element (RFC 7239, section 4); `None` where there is none. A quote that is not closed could swallow the element that
/// a proxy has appended: then the whole value is `None`.
fn forwarded_for(value: &str) -> Vec<Option<&str>> {
    let Some(elements) = unquoted_split(value, ',') else { return vec![None] };
    let client = |element| {
        unquoted_split(element, ';')?.into_iter().find_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
            name.eq_ignore_ascii_case("for").then_some(value)
        })
    };
    elements.into_iter().map(client).collect()
}

/// The parts between separators outside quotes; `None` if a quote is not closed.
fn unquoted_split(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut quoted, mut escaped) = (false, false);
    let parts = text.split(|character| {
        let within = quoted;
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        character == separator && !within
    });
    let parts = parts.collect();
    (!quoted).then_some(parts)
}
