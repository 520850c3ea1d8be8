//! Whoever goes beyond a limit is told so or cut off, the bridge's memory does not grow, and other clients notice nothing.

mod connections;
mod decompression;
mod requests;
mod slow;
mod streams;

use crate::bounds::assert_small;
use crate::support::raw::Raw;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, STDOUT};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::Duration;
use tokio::time::sleep;

async fn bridge(settings: &str) -> Bridge {
    Bridge::start(&format!("{ANY_PORTS}{settings}{STDOUT}")).await
}

/// Lets this process have as many files as the system does, and so the bridge, which inherits that.
fn open_many_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

async fn limited(bridge: &Bridge, limit: &str) -> f64 {
    bridge.metric(&format!("cdrelay_ingress_limited_total{{limit=\"{limit}\"}}")).await.unwrap()
}

/// Does what is hostile while somebody else sends one webhook after another, on a connection that stays and on new ones, and gets a 200
/// for each.
async fn beside_others<T>(bridge: &Bridge, what: &str, hostile: impl Future<Output = T>) -> T {
    let others = async {
        let mut kept = Raw::connect(bridge).await;
        for n in 0.. {
            let event = format!("{{\"kept\":\"{what}\",\"n\":{n}}}");
            let mut status = kept.exchange(&event).await;
            // Where connections run out, one that has been idle for a second may have had to go: its client makes another.
            if status.is_err() && limited(bridge, "connections").await > 0.0 {
                kept = Raw::connect(bridge).await;
                status = kept.exchange(&event).await;
            }
            assert_eq!(status, Ok(200), "{what}, {n}");
            let mut fresh = Raw::connect(bridge).await;
            assert_eq!(fresh.exchange(&format!("{{\"new\":\"{what}\",\"n\":{n}}}")).await, Ok(200), "{what}, {n}");
            sleep(Duration::from_millis(5)).await;
        }
        unreachable!()
    };
    tokio::select! {
        result = tokio::time::timeout(PATIENCE, hostile) => {
            let result = result.unwrap_or_else(|_| panic!("{what} takes too long"));
            assert_small(bridge, what);
            result
        }
        never = others => never,
    }
}
