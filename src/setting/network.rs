//! Networks, and whether an address is in them.

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{self, Deserializer};
use std::net::IpAddr;
use std::str::FromStr;

/// A network, or a single address, which is one of its own: `"192.0.2.0/24"`, `"2001:db8::/32"`, `"127.0.0.1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Whether one of them holds the address, which is that of an IPv4 client also where a socket wraps it in IPv6.
    pub fn any_holds(networks: &[Self], address: IpAddr) -> bool {
        let address = address.to_canonical();
        networks.iter().any(|Self(network)| network.contains(&address))
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        // Bits beyond the prefix are a slip: one address was meant, or another prefix.
        let network = network.filter(|network| network.addr() == network.network());
        let allowed = "a network or an address, such as \"192.0.2.0/24\", \"2001:db8::/32\" or \"127.0.0.1\"";
        network.map(Self).ok_or_else(|| format!("found {text:?}; allowed is {allowed}"))
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
