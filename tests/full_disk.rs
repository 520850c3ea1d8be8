//! A disk without room: webhooks are refused, nothing acknowledged is lost, and room is used as soon as it is there.

use std::io::{Write, stderr};

use crate::support::bridge::on_fixed_port;
use crate::support::fault::{catch_up, nats_sink, steady};
use crate::support::oracle::settled;
use crate::support::small_disk::SmallDisk;
use crate::support::{ANY_PORTS, Bridge, PATIENCE, eventually, nats};

/// Waits until webhooks are refused for want of room, as they are to be.
async fn refused(bridge: &Bridge) {
    eventually(PATIENCE, "webhooks are refused", async || bridge.admin("/readyz/ingress").await.status == 503).await;
    let answer = bridge.post(r#"{"conversation_uuid":"refused","number":0}"#, "application/json").await;
    println!("{} {}", answer.status, answer.text().trim());
    assert_eq!(answer.status, 503);
    assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(bridge.admin("/readyz").await.status, 503);
    assert_eq!(bridge.admin("/livez").await.status, 200);
}

async fn taken(bridge: &Bridge) {
    eventually(PATIENCE, "webhooks are taken", async || bridge.admin("/readyz/ingress").await.status == 200).await;
}

#[tokio::test]
async fn a_full_disk_refuses_webhooks_loses_nothing_and_is_used_again_once_there_is_room() {
    let stream = nats::unique_name("full_disk");
    nats::create_stream(&nats::shared(), &stream, &[&format!("{stream}.>")]).await;
    let config = format!(
        "{ANY_PORTS}
        [spool]
        segment_size = '256KiB'
        {}",
        nats_sink(&nats::shared(), &stream)
    );
    let bridge = Bridge::start(&config).await;
    let load = steady("disk full", &bridge);
    // First there is no room for a new segment. Then not even for all of the one in use, where a write breaks off in the middle. Then for
    // nothing: not for a cursor either, nor for a line of the log.
    for room in [255 << 10, 100 << 10, 0] {
        load.progress(200).await;
        bridge.limit_files(Some(room));
        println!("at most {room} bytes in a file");
        refused(&bridge).await;
        settled(&bridge, &["nats"]).await;
        eventually(PATIENCE, "all that was acknowledged is delivered, and nothing else", async || {
            nats::stream_length(&nats::shared(), &stream).await == load.acknowledged() as u64
        })
        .await;

        bridge.limit_files(None);
        taken(&bridge).await;
    }
    load.progress(200).await;
    let sent = load.stop().await;
    settled(&bridge, &["nats"]).await;
    assert_eq!(sent.check_nats(&nats::stream_all(&nats::shared(), &stream).await), 0);
    assert_eq!(bridge.admin("/readyz").await.status, 200);
    assert_eq!(bridge.metric("cdrelay_spool_damaged_records_total").await, Some(0.0));
}

/// The spool may take a gigabyte, and there are 8 MiB.
#[tokio::test]
async fn a_bridge_killed_on_a_full_file_system_starts_delivers_what_it_has_and_goes_on_with_any_room() {
    let disk = match SmallDisk::mount(8 << 20).await {
        Ok(disk) => disk,
        Err(refusals) => {
            let told = format!(
                "\n*** NOT TESTED: a full file system. None can be mounted here ({refusals}).\n*** What stands in for it is a limit on the \
                 size of files: a_full_disk_refuses_webhooks_loses_nothing_and_is_used_again_once_there_is_room\n"
            );
            // Past the harness, which shows the output of failed tests only.
            stderr().write_all(told.as_bytes()).unwrap();
            return;
        }
    };
    println!("a file system of 8 MiB, mounted through `{}`", disk.way());
    let mut server = nats::Server::start("").await;
    nats::create_stream(&server.url(), "CDR", &["CDR.>"]).await;
    let config = format!(
        "{}
        [spool]
        path = {:?}
        segment_size = '128KiB'
        {}
        ack_timeout = '2s'",
        on_fixed_port(),
        disk.path(),
        nats_sink(&server.url(), "CDR")
    );
    let mut bridge = Bridge::start_inside(&disk, &config).await;
    let load = steady("file system full", &bridge);
    load.progress(300).await;

    // Somebody else takes all the room, gives it back, and the bridge is killed in between.
    server.kill();
    disk.fill();
    refused(&bridge).await;
    bridge.kill();
    disk.fill();
    bridge.start_again().await;
    refused(&bridge).await;
    let held = load.acknowledged();
    disk.free();
    taken(&bridge).await;
    load.progress(300).await;
    println!("{held} events were acknowledged when there was no room, {} now", load.acknowledged());
    server.start_again().await;
    catch_up(&bridge, "nats", "after there was room").await;

    // Nobody gives anything back, but what is delivered makes room.
    server.kill();
    let segments = async || bridge.metric("cdrelay_spool_segments").await.unwrap();
    eventually(PATIENCE, "several segments wait", async || segments().await >= 6.0).await;
    disk.fill();
    refused(&bridge).await;
    bridge.kill();
    disk.fill();
    bridge.start_again().await;
    refused(&bridge).await;
    let held = load.acknowledged();
    server.start_again().await;
    load.progress(300).await;
    println!("{held} events were acknowledged when there was no room, {} without anybody's help", load.acknowledged());
    disk.free();
    taken(&bridge).await;
    load.progress(300).await;
    let sent = load.stop().await;
    settled(&bridge, &["nats"]).await;
    let duplicates = sent.check_nats(&nats::stream_all(&server.url(), "CDR").await);
    println!("{} events, 2 kills of the bridge, {duplicates} duplicates", sent.count());
    assert_eq!(duplicates, 0, "the stream knows what it has");
    assert_eq!(bridge.metric("cdrelay_spool_damaged_records_total").await, Some(0.0));
    assert_eq!(bridge.metric("cdrelay_sink_dead_lettered_total{sink=\"nats\"}").await, Some(0.0));
}
