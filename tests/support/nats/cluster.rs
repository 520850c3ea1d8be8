//! A JetStream cluster of one test's own: three servers.

use async_nats::jetstream::stream;

use super::{Server, jetstream};
use crate::support::{PATIENCE, eventually, free_port, until};

const SERVERS: usize = 3;

/// Killed, and its data deleted, when dropped.
pub struct Cluster {
    servers: Vec<Server>,
}

impl Cluster {
    pub async fn start() -> Self {
        let ports: Vec<_> = (0..SERVERS).map(|_| free_port()).collect();
        let routes: Vec<_> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let mut servers = Vec::new();
        for (number, port) in ports.iter().enumerate() {
            let cluster = format!("cluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: {routes:?} }}");
            servers.push(Server::start(&format!("server_name: {}\n{cluster}", name(number))).await);
        }
        Self { servers }
    }

    /// All servers, for `servers`.
    pub fn urls(&self) -> String {
        self.servers.iter().map(Server::url).collect::<Vec<_>>().join(",")
    }

    /// Creates a stream with a copy on each server, as soon as the servers have found together.
    pub async fn create_stream(&self, name: &str, subjects: &[&str]) {
        let subjects = subjects.iter().map(|&subject| subject.to_owned()).collect();
        let config = stream::Config { name: name.to_owned(), subjects, num_replicas: SERVERS, ..Default::default() };
        let context = jetstream(&self.urls()).await;
        eventually(PATIENCE, "the cluster makes a stream", async || {
            context.create_stream(config.clone()).await.is_ok()
        })
        .await;
        self.in_sync(name).await;
    }

    /// The server that leads the stream, once there is one.
    pub async fn leader(&self, stream: &str) -> usize {
        let leader = until(PATIENCE, "the stream has a leader", async || self.info(stream).await?.leader).await;
        (0..SERVERS).find(|&number| name(number) == leader).unwrap()
    }

    /// Waits until all servers have all of the stream.
    pub async fn in_sync(&self, stream: &str) {
        eventually(PATIENCE, "all replicas are in sync", async || {
            let Some(info) = self.info(stream).await else { return false };
            let in_sync = info.replicas.iter().filter(|replica| replica.current && !replica.offline).count();
            info.leader.is_some() && in_sync == SERVERS - 1
        })
        .await;
    }

    pub fn server(&mut self, number: usize) -> &mut Server {
        &mut self.servers[number]
    }

    async fn info(&self, stream: &str) -> Option<stream::ClusterInfo> {
        jetstream(&self.urls()).await.get_stream(stream).await.ok()?.cached_info().cluster.clone()
    }
}

fn name(number: usize) -> String {
    format!("server-{number}")
}
