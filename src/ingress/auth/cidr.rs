//! The networks that may send. Behind trusted proxies, the address that the first of them saw counts.

use super::Head;
use super::config::Cidr;
use crate::setting::Network;
use hyper::header::HeaderName;
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
        let mut hops = Vec::new();
        for value in head.values(&X_FORWARDED_FOR) {
            let value = str::from_utf8(value).map_err(|_| "the proxy's header field is not text")?;
            hops.extend(value.split(',').map(str::trim));
        }
        for hop in hops.into_iter().rev() {
            sender = address(hop).ok_or("the proxy's header field holds no address")?;
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
