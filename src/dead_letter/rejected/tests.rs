use super::*;
use crate::event::Arrival;
use crate::metrics::Metrics;

fn request() -> RejectedBody {
    RejectedBody {
        arrival: Arrival(1_634_721_099_442).to_string(),
        status: 400,
        reason: "line 1, column 3: not \"good\"".into(),
        line: Some(1),
        column: Some(3),
        ingress: "default".into(),
        method: "POST".into(),
        content_type: Some("text/plain".into()),
        query: Some("n=1".into()),
        ..RejectedBody::default()
    }
}

fn kept(spool: &Path) -> Vec<(RejectedBody, serde_json::Value)> {
    let mut reader = read(spool).unwrap();
    let mut kept = Vec::new();
    while let Some(found) = reader.read_next().unwrap() {
        kept.push((found.item, serde_json::from_slice(&found.line).unwrap()));
    }
    kept
}

#[test]
fn any_bytes_come_back_exactly_with_their_request() {
    let spool = tempfile::tempdir().unwrap();
    let every_byte: Vec<u8> = (0..=255).collect();
    let originals: [&[u8]; 6] =
        [b"", b"{ a: 'b\\' }\r\n\t", "é\u{1f600}\"".as_bytes(), b"nul \0", &every_byte, b"\xef\xbb\xbf{}"];
    let metrics = Metrics::default().ingress.rejected;
    let bodies = RejectedBodies::start(&Config::default(), spool.path(), metrics.clone()).unwrap();
    originals.iter().for_each(|body| bodies.keep(request(), body));
    bodies.close();
    bodies.keep(request(), b"too late");
    let kept = kept(spool.path());
    assert_eq!(kept.iter().map(|(body, _)| body.body().unwrap()).collect::<Vec<_>>(), originals);
    assert_eq!(metrics.kept.get(), 6);
    assert_eq!(
        kept[1].1,
        serde_json::json!({
            "number": 1, "arrival": "2021-10-20T09:11:39.442Z", "status": 400, "reason": "line 1, column 3: not \"good\"",
            "line": 1, "column": 3, "ingress": "default", "method": "POST", "content_type": "text/plain", "query": "n=1",
            "body": "{ a: 'b\\' }\r\n\t",
        })
    );
}

#[test]
fn bodies_beyond_the_queue_are_counted_and_dropped_and_a_large_one_is_taken_alone() {
    let spool = tempfile::tempdir().unwrap();
    let metrics = Metrics::default().ingress.rejected;
    let config = Config { max_size: ByteSize::mib(64) };
    let bodies = RejectedBodies::start(&config, spool.path(), metrics.clone()).unwrap();
    let large = vec![b'x'; 3 * QUEUE_BYTES];
    bodies.keep(request(), &large);
    let permit = bodies.budget.try_acquire_many(QUEUE_BYTES as u32 - bodies.budget.available_permits() as u32 / 2).ok();
    let before = metrics.busy.get();
    let body = vec![b'y'; QUEUE_BYTES];
    (0..20).for_each(|_| bodies.keep(request(), &body));
    drop(permit);
    bodies.close();
    let (kept, busy) = (kept(spool.path()).len() as u64, metrics.busy.get());
    assert!(busy > before, "{busy}");
    assert_eq!(kept + busy, 21);
    assert_eq!(metrics.kept.get(), kept);
}
