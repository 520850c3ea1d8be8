//! Checks settings against each other.

use super::Config;
use super::error::problem;
use crate::event::DEFAULT_INGRESS;
use crate::ingress as webhooks;
use crate::ingress::routes::is_name;
use figment::Figment;
use figment::value::Dict;
use std::fmt::Display;

impl Config {
    /// A line for each mistake.
    pub(super) fn validate(&self, figment: &Figment) -> Vec<String> {
        let routes = self.ingress.route_problems();
        let mut problems: Vec<_> = routes.iter().map(|(key, text)| problem(figment, key, text)).collect();
        let mut check = |holds: bool, key: &str, text: &dyn Display| {
            if !holds {
                problems.push(problem(figment, key, text));
            }
        };
        let (ingress, spool) = (&self.ingress, &self.spool);
        for (name, reconcile) in &self.reconcile {
            let at = format!("reconcile.{name}");
            check(
                is_name(name) && *name != DEFAULT_INGRESS && !ingress.routes.contains_key(name),
                &at,
                &"the name has 1 to 64 characters of a-z 0-9 _ -, and is neither `default` nor the name of a route: `{ingress}` tells them apart",
            );
            check(
                reconcile.window <= spool.legs_window && spool.legs_capacity > 0,
                &format!("{at}.window"),
                &format_args!(
                    "found {:?}; CDRs are known for `spool.legs_window`, {:?}, if `spool.legs_capacity` is not 0",
                    reconcile.window, spool.legs_window
                ),
            );
            for (key, text) in reconcile.problems() {
                check(false, &format!("{at}.{key}"), &text);
            }
        }
        check(
            ingress.ack == webhooks::Ack::Stored || self.sinks.values().any(|sink| sink.dispatch.required),
            "ingress.ack",
            &"found \"delivered\", and no sink is required, so that there is nothing to wait for; set `required = true` for one",
        );
        let tls = ingress.tls.as_ref();
        check(
            tls.is_none_or(|tls| tls.client_ca_file.is_some())
                || figment.find_value("ingress.tls.client_auth").is_err(),
            "ingress.tls.client_auth",
            &"is of use only with `ingress.tls.client_ca_file`, which names the authorities whose clients are taken; set both or neither",
        );
        check(
            ingress.proxy_protocol.as_ref().is_none_or(|proxies| !proxies.trusted_proxies.0.is_empty()),
            "ingress.proxy_protocol.trusted_proxies",
            &"found an empty list; with that nobody could connect",
        );
        check(
            ingress.decode.max_depth <= crate::event::MAX_DEPTH,
            "ingress.decode.max_depth",
            &format_args!("found {}; {} at the most", ingress.decode.max_depth, crate::event::MAX_DEPTH),
        );
        check(
            ingress.body_memory >= ingress.max_body,
            "ingress.body_memory",
            &format_args!(
                "found {}; it has to hold a body of `ingress.max_body`, {}",
                ingress.body_memory, ingress.max_body
            ),
        );
        let unpacked = ingress.max_decompressed_body.unwrap_or_default();
        check(
            ingress.body_memory >= unpacked,
            "ingress.body_memory",
            &format_args!(
                "found {}; it has to hold a body of `ingress.max_decompressed_body`, {unpacked}",
                ingress.body_memory
            ),
        );
        for (key, size) in [("ingress.max_body", ingress.max_body), ("ingress.max_decompressed_body", unpacked)] {
            check(size.as_u64() <= 64 << 20, key, &format_args!("found {size}; 64 MiB at the most"));
        }
        check(
            spool.max_size.as_u64() >= ingress.max_body.as_u64().saturating_mul(4),
            "spool.max_size",
            &format_args!(
                "found {}; it has to hold four bodies of `ingress.max_body`, {}",
                spool.max_size, ingress.max_body
            ),
        );
        check(
            spool.max_size.as_u64() >= unpacked.as_u64().saturating_mul(4),
            "spool.max_size",
            &format_args!(
                "found {}; it has to hold four bodies of `ingress.max_decompressed_body`, {unpacked}",
                spool.max_size
            ),
        );
        let largest = unpacked.max(ingress.max_body).as_u64();
        check(
            self.dead_letters.max_size.as_u64() >= largest.saturating_mul(4),
            "dead_letters.max_size",
            &format_args!("found {}; it has to hold four bodies of {largest} bytes", self.dead_letters.max_size),
        );
        check(
            spool.segment_size.is_none_or(|size| size.as_u64() <= spool.max_size.as_u64() / 2),
            "spool.segment_size",
            &format_args!(
                "found {}; half of `spool.max_size`, {}, at the most",
                spool.segment_size.unwrap_or_default(),
                spool.max_size
            ),
        );
        check(
            self.admin.listen != ingress.listen || ingress.listen.port() == 0,
            "admin.listen",
            &format_args!("found {}, which is `ingress.listen` too; they need ports of their own", self.admin.listen),
        );
        for (key, none) in [
            ("max_connections", ingress.max_connections == 0),
            ("max_connections_per_peer", ingress.max_connections_per_peer == Some(0)),
        ] {
            check(!none, &format!("ingress.{key}"), &"found 0; with that nobody could connect");
        }
        for (name, sink) in &self.sinks {
            for (key, none) in [
                ("max_in_flight", sink.dispatch.max_in_flight == 0),
                ("max_in_flight_bytes", sink.dispatch.max_in_flight_bytes.as_u64() == 0),
            ] {
                check(!none, &format!("sinks.{name}.{key}"), &"found 0; with that nothing would be sent");
            }
        }
        // One that is wrong is not one that is missing.
        if figment.find_value("sinks").map_or(true, |sinks| sinks.as_dict().is_none_or(Dict::is_empty)) {
            problems.push("no sink is configured; add for example:\n  [sinks.stdout]\n  type = \"stdout\"".into());
        }
        problems
    }
}
