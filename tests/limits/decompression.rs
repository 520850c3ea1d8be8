//! Compressed bodies.

use super::*;
use crate::support::bridge::Answer;
use crate::support::until;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use std::io::{Read, Write, copy, repeat};

const GIB: u64 = 1 << 30;

/// So many spaces, packed, and never whole in memory here.
fn spaces(coding: &str, count: u64) -> Vec<u8> {
    let mut spaces = repeat(b' ').take(count);
    match coding {
        "gzip" => {
            let mut writer = GzEncoder::new(Vec::new(), Compression::best());
            copy(&mut spaces, &mut writer).unwrap();
            writer.finish().unwrap()
        }
        "deflate" => {
            let mut writer = ZlibEncoder::new(Vec::new(), Compression::best());
            copy(&mut spaces, &mut writer).unwrap();
            writer.finish().unwrap()
        }
        "zstd" => zstd_of_spaces(count),
        "br" => {
            let mut packed = Vec::new();
            let parameters = brotli::enc::BrotliEncoderParams { quality: 3, lgwin: 24, ..Default::default() };
            brotli::BrotliCompress(&mut spaces, &mut packed, &parameters).unwrap();
            packed
        }
        _ => unreachable!(),
    }
}

/// By hand (RFC 8878): a window of 2 GiB, no size told, and blocks that repeat one byte.
fn zstd_of_spaces(mut count: u64) -> Vec<u8> {
    const BLOCK: u64 = 128 << 10;
    let mut packed = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3];
    while count > 0 {
        let size = count.min(BLOCK);
        count -= size;
        let header = (size as u32) << 3 | 1 << 1 | u32::from(count == 0);
        packed.extend(&header.to_le_bytes()[..3]);
        packed.push(b' ');
    }
    packed
}

async fn post(bridge: &Bridge, coding: &str, body: Vec<u8>) -> Answer {
    let request = Request::post(bridge.ingress_url()).header("content-encoding", coding);
    bridge.send(request.body(Full::new(Bytes::from(body))).unwrap()).await
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

#[tokio::test]
async fn compressed_webhooks_are_stored_as_what_they_are() {
    let bridge = bridge("").await;
    let large = format!("{{\"large\":\"{}\"}}", "x".repeat(900_000));
    for (n, event) in ["{\"small\":1}", &large].into_iter().enumerate() {
        let answer = post(&bridge, "gzip", gzip(event.as_bytes())).await;
        assert_eq!((answer.status, answer.text()), (200, "{\"stored\":1,\"duplicates\":0}\n"));
        let twice = post(&bridge, "GZIP, gzip", gzip(&gzip(event.as_bytes()))).await;
        assert_eq!((twice.status, twice.text()), (200, "{\"stored\":0,\"duplicates\":1}\n"));
        let lines =
            until(PATIENCE, "it is published", async || Some(bridge.stdout_lines()).filter(|lines| lines.len() > n));
        assert!(lines.await[n].contains(event));
    }
}

#[tokio::test]
async fn bombs_are_defused_beside_other_clients() {
    let bridge = bridge("").await;
    let bombs = [
        ("gzip", spaces("gzip", 10 << 20)),
        ("deflate", spaces("deflate", 10 << 20)),
        ("zstd", spaces("zstd", 4 * GIB)),
        ("br", spaces("br", GIB)),
        ("gzip, gzip", gzip(&spaces("gzip", GIB / 4))),
        ("zstd, br", {
            let mut packed = Vec::new();
            brotli::BrotliCompress(&mut &zstd_of_spaces(4 * GIB)[..], &mut packed, &Default::default()).unwrap();
            packed
        }),
    ];
    for (coding, bomb) in bombs {
        println!("{coding}: {} bytes", bomb.len());
        assert!(bomb.len() < 1 << 20);
        let answers = beside_others(&bridge, coding, async {
            join_all((0..32).map(|_| post(&bridge, coding, bomb.clone()))).await
        });
        for answer in answers.await {
            assert_eq!(answer.status, 413, "{coding}: {answer:?}");
            assert!(answer.text().contains("may decompress to 1024000 bytes"), "{coding}: {answer:?}");
        }
    }
}

/// What is not above the bound is taken, however little came.
#[tokio::test]
async fn the_bound_is_exact_and_can_be_another_than_for_plain_bodies() {
    let bridge = bridge("max_body = '16KiB'\nmax_decompressed_body = '2MiB'\n").await;
    for coding in ["gzip", "deflate", "zstd", "br"] {
        let empty = post(&bridge, coding, spaces(coding, 2 << 20)).await;
        assert_eq!(empty.status, 400, "{coding}: {empty:?}");
        assert!(empty.text().contains("the body is empty"), "{empty:?}");
        assert_eq!(post(&bridge, coding, spaces(coding, (2 << 20) + 1)).await.status, 413, "{coding}");
    }
    assert_eq!(post(&bridge, "identity", vec![b' '; (16 << 10) + 1]).await.status, 413);
}

/// Some senders name the character set there. A coding that is not known may hide a call, so its body is kept.
#[tokio::test]
async fn a_character_set_is_no_coding_and_a_body_of_an_unknown_coding_is_kept() {
    let bridge = bridge("").await;
    for (n, coding) in ["UTF-8", "utf8", "none", "identity", "", "iso-8859-1"].iter().enumerate() {
        let answer = post(&bridge, coding, format!("{{\"n\":{n}}}").into()).await;
        assert_eq!((answer.status, answer.text()), (200, "{\"stored\":1,\"duplicates\":0}\n"), "{coding}");
    }
    assert_eq!(post(&bridge, "lzma", b"a call".to_vec()).await.status, 415);
    until(PATIENCE, "the body is kept", async || {
        bridge.metric("cdrelay_ingress_rejected_kept_total").await.filter(|kept| *kept == 1.0)
    })
    .await;
}

#[tokio::test]
async fn a_body_that_cannot_be_decompressed_is_kept_as_it_came() {
    let bridge = bridge("").await;
    for (body, coding) in [(&b"\x1f\x8b\x08broken"[..], "gzip"), (b"{\"plain\":1}", "br"), (b"", "zstd")] {
        let answer = post(&bridge, coding, body.to_vec()).await;
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    assert_eq!(post(&bridge, "gzip", gzip(b"{\"a\":")).await.status, 400);
    until(PATIENCE, "three bodies are kept", async || {
        bridge.metric("cdrelay_ingress_rejected_kept_total").await.filter(|kept| *kept == 3.0)
    })
    .await;
    let mut command = crate::support::bridge::command();
    command.current_dir(bridge.directory()).args(["dead-letters", "show", "--rejected", "--config", "cdrelay.toml"]);
    let shown = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(shown.contains("cannot be decompressed") && shown.contains("H4sIYnJva2Vu"), "{shown}");
    assert!(shown.contains("\"body\":\"{\\\"plain\\\":1}\"") && shown.contains("\"body\":\"{\\\"a\\\":\""), "{shown}");
}
