//! A Kafka cluster of one test's own: three nodes, each of them broker and controller at once.

use std::time::Duration;

use futures_util::future::join_all;
use rdkafka::admin::TopicReplication;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::{Broker, admin, create, create_replicated};
use crate::support::{PATIENCE, eventually, free_port, until};

/// Their ids are 1 to this.
const NODES: i32 = 3;

/// Killed, and its data deleted, when dropped.
pub struct Cluster {
    nodes: Vec<Broker>,
}

impl Cluster {
    pub async fn start() -> Self {
        let ports: Vec<_> = (1..=NODES).map(|node| (node, free_port(), free_port())).collect();
        let voters: Vec<_> =
            ports.iter().map(|(node, _, controller)| format!("{node}@127.0.0.1:{controller}")).collect();
        let voters = voters.join(",");
        let nodes = ports.iter().map(async |(node, port, controller)| {
            let listeners = format!("PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}");
            let properties =
                [("node.id", node.to_string()), ("listeners", listeners), ("controller.quorum.voters", voters.clone())];
            let properties = properties.each_ref().map(|(key, value)| (*key, value.as_str()));
            Broker::start_node(TempDir::new().unwrap(), *port, None, &properties).await
        });
        // None of them serves before most of them are there.
        Self { nodes: join_all(nodes).await }
    }

    /// All nodes, for `brokers`.
    pub fn addresses(&self) -> String {
        self.nodes.iter().map(Broker::address).collect::<Vec<_>>().join(",")
    }

    /// Creates a topic with a copy on each node, two of which have to have a message, and waits until all take part.
    pub async fn create_topic(&self, name: &str, partitions: i32) {
        create(&self.addresses(), name, partitions, NODES, &[("min.insync.replicas", "2")]).await;
        self.in_sync(name).await;
    }

    /// Creates a topic whose partitions have their replicas on these nodes, the first of which leads.
    pub async fn create_topic_on(&self, name: &str, replicas: &[&[i32]], settings: &[(&str, &str)]) {
        let partitions = i32::try_from(replicas.len()).unwrap();
        create_replicated(&self.addresses(), name, partitions, TopicReplication::Variable(replicas), settings).await;
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Broker> {
        self.nodes.iter()
    }

    pub fn node(&mut self, id: i32) -> &mut Broker {
        &mut self.nodes[usize::try_from(id).unwrap() - 1]
    }

    /// Which node leads each partition, -1 for none, as those that answer see it.
    pub async fn leaders(&self, topic: &str) -> Vec<i32> {
        until(PATIENCE, "the cluster tells who leads", async || {
            Some(self.partitions(topic).await?.into_iter().map(|(leader, _)| leader).collect())
        })
        .await
    }

    /// Waits until all nodes have all of the topic.
    pub async fn in_sync(&self, topic: &str) {
        eventually(PATIENCE, "all replicas are in sync", async || {
            let partitions = self.partitions(topic).await.unwrap_or_default();
            !partitions.is_empty()
                && partitions.iter().all(|&(leader, in_sync)| leader >= 0 && in_sync == NODES as usize)
        })
        .await;
    }

    /// The leader of each partition and the number of replicas in sync; `None` if nobody tells.
    async fn partitions(&self, topic: &str) -> Option<Vec<(i32, usize)>> {
        let (addresses, topic) = (self.addresses(), topic.to_owned());
        let ask = move || {
            let metadata = admin(&addresses).inner().fetch_metadata(Some(&topic), Duration::from_secs(5)).ok()?;
            let partitions = metadata.topics().first()?.partitions();
            Some(partitions.iter().map(|partition| (partition.leader(), partition.isr().len())).collect())
        };
        spawn_blocking(ask).await.unwrap()
    }
}
