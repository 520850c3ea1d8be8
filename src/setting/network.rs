//! Networks, and whether an address is in them.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected};
use std::borrow::Cow;
use std::net::IpAddr;

/// A network, or a single address, which is a network of one: `"192.0.2.0/24"`, `"2001:db8::/32"`, `"127.0.0.1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The first address, an IPv4 address mapped into IPv6.
    address: u128,
    /// The leading bits of an address that count, out of 128.
    prefix: u32,
}

/// The prefix of all IPv4 addresses that are mapped into IPv6.
const MAPPED: u32 = 96;

impl Network {
    /// Whether one of the networks holds the address, which is an IPv4 address also where a socket maps it into IPv6.
    pub fn any_holds(networks: &[Self], address: IpAddr) -> bool {
        let is_ipv4 = address.to_canonical().is_ipv4();
        let address = bits(address);
        networks.iter().any(|network| {
            let differing = (address ^ network.address).checked_shr(u128::BITS - network.prefix);
            differing.unwrap_or(0) == 0 && (network.prefix >= MAPPED || !is_ipv4)
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().ok()?;
        let fixed = if address.is_ipv4() { MAPPED } else { 0 };
        let prefix = match prefix {
            Some(digits) if !digits.starts_with('+') => digits.parse::<u8>().ok()?.into(),
            Some(_) => return None,
            None => u128::BITS - fixed,
        };
        let network = Self { address: bits(address), prefix: fixed + prefix };
        // Bits beyond the prefix are a mistake: one address was meant, or another prefix.
        let beyond = network.address.checked_shl(network.prefix).unwrap_or(0);
        (network.prefix <= u128::BITS && beyond == 0).then_some(network)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let allowed = "a network or an address, such as \"192.0.2.0/24\", \"2001:db8::/32\" or \"127.0.0.1\"";
        Self::parse(&text).ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), &allowed))
    }
}

impl JsonSchema for Network {
    fn schema_name() -> Cow<'static, str> {
        "Network".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["192.0.2.0/24", "2001:db8::/32", "127.0.0.1"] })
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
