//! Networks, and whether an address is in them.

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected};
use std::net::IpAddr;

/// A network, or a single address, which is a network of one: `"192.0.2.0/24"`, `"2001:db8::/32"`, `"127.0.0.1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Whether one of the networks holds the address, which is an IPv4 address also where a socket maps it into IPv6.
    pub fn any_holds(networks: &[Self], address: IpAddr) -> bool {
        let address = address.to_canonical();
        networks.iter().any(|Self(network)| network.contains(&address))
    }

    fn parse(text: &str) -> Option<Self> {
        let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))?;
        // Bits beyond the prefix are a mistake: one address was meant, or another prefix.
        (network.addr() == network.network()).then(|| Self(canonical(network)))
    }
}

/// A network of IPv4-mapped addresses (`::ffff:127.0.0.0/104`) as the IPv4 network that it is.
fn canonical(network: IpNet) -> IpNet {
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (IpAddr::V4(address), Some(prefix)) if matches!(network, IpNet::V6(_)) => {
            Ipv4Net::new(address, prefix).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let allowed = "a network or an address, such as \"192.0.2.0/24\", \"2001:db8::/32\" or \"127.0.0.1\"";
        Self::parse(&text).ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), &allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv4_mapped_addresses_holds_ipv4_clients() {
        for (network, address, expected) in [
            ("::ffff:127.0.0.0/104", "127.0.0.1", true),
            ("::ffff:127.0.0.0/104", "::ffff:127.9.9.9", true),
            ("::ffff:127.0.0.0/104", "128.0.0.1", false),
            ("::ffff:192.0.2.1", "192.0.2.1", true),
            ("::ffff:192.0.2.1", "192.0.2.2", false),
            ("::ffff:0.0.0.0/96", "203.0.113.1", true),
            ("::ffff:0.0.0.0/96", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "192.0.2.1", false),
            ("2001:db8::/32", "2001:db8::1", true),
        ] {
            let networks = [Network::parse(network).unwrap()];
            assert_eq!(Network::any_holds(&networks, address.parse().unwrap()), expected, "{network} {address}");
        }
        for wrong in ["::ffff:127.0.0.1/104", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "\u{feff}10.0.0.0/8", ""] {
            assert_eq!(Network::parse(wrong), None, "{wrong}");
        }
    }
}
