use super::*;
use bytesize::ByteSize;
use std::os::unix::fs::PermissionsExt;

fn refused(body: &[u8]) -> Refused<'_> {
    Refused {
        arrival: Arrival(1_634_721_099_442),
        status: 400,
        reason: "line 1, column 3: not \"good\"".into(),
        place: Some((1, 3)),
        ingress: "default".into(),
        method: "POST".into(),
        content_type: Some("text/plain".into()),
        query: None,
        body: body.into(),
    }
}

fn bounds(max_size: u64, max_count: usize) -> Config {
    Config { max_size: ByteSize(max_size), max_count }
}

fn all(spool: &Path) -> Vec<Found<Kept>> {
    let mut reader = Reader::of(spool).unwrap();
    let mut all = Vec::new();
    while let Some(found) = reader.read_next().unwrap() {
        all.push(found);
    }
    assert_eq!(reader.damaged(), 0);
    all
}

fn ids(spool: &Path) -> Vec<u64> {
    all(spool).iter().map(|found| found.item.id).collect()
}

fn bytes(spool: &Path) -> u64 {
    let entries = std::fs::read_dir(directory(spool)).unwrap();
    entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn append(bodies: &mut Bodies, batch: &[Refused<'_>]) -> Written {
    let (written, result) = bodies.append(batch);
    result.unwrap();
    bodies.take_unsynced().sync().unwrap();
    written
}

#[test]
fn any_bytes_come_back_exactly_and_only_the_owner_may_read_them() {
    let dir = tempfile::tempdir().unwrap();
    let every_byte: Vec<u8> = (0..=255).collect();
    let originals: [&[u8]; 6] =
        [b"", b"{ a: 'b\\' }\r\n\t", "é\u{1f600}\"".as_bytes(), b"nul \0", &every_byte, b"\xef\xbb\xbf{}"];
    let mut bodies = Bodies::open(dir.path(), &bounds(1 << 20, 100)).unwrap();
    let batch: Vec<_> = originals.iter().map(|body| refused(body)).collect();
    assert_eq!(append(&mut bodies, &batch).added, 6);
    let kept = all(dir.path());
    assert_eq!(kept.iter().map(|found| found.item.body().unwrap()).collect::<Vec<_>>(), originals);
    let line: serde_json::Value = serde_json::from_slice(&kept[1].line).unwrap();
    assert_eq!(
        line,
        serde_json::json!({
            "id": 1, "arrival": "2021-10-20T09:11:39.442Z", "status": 400, "reason": "line 1, column 3: not \"good\"",
            "line": 1, "column": 3, "ingress": "default", "method": "POST", "content_type": "text/plain", "body": "{ a: 'b\\' }\r\n\t",
        })
    );
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let dir = directory(dir.path());
    assert_eq!((mode(&dir), mode(dir.parent().unwrap()), mode(&path(&dir, 0))), (0o700, 0o700, 0o600));
}

#[test]
fn bounds_hold_after_every_write_and_the_oldest_go_first() {
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..30 {
        let dir = tempfile::tempdir().unwrap();
        let config = bounds(random.u64(2_000..20_000), random.usize(1..40));
        let mut bodies = Bodies::open(dir.path(), &config).unwrap();
        let mut sum = Written::default();
        let mut sent = 0;
        for _ in 0..60 {
            let sizes: Vec<usize> = (0..random.usize(0..8)).map(|_| random.usize(0..3_000)).collect();
            let texts: Vec<String> = sizes.iter().map(|size| "x".repeat(*size)).collect();
            let batch: Vec<_> = texts.iter().map(|text| refused(text.as_bytes())).collect();
            let written = append(&mut bodies, &batch);
            sent += batch.len() as u64;
            sum.added += written.added;
            sum.oldest += written.oldest;
            sum.too_large += written.too_large;
            if sent > 0 && sum.added > 0 {
                let ids = ids(dir.path());
                let context = format!("round {round}, {config:?}, {sum:?}, {} held", ids.len());
                assert!(bytes(dir.path()) <= config.max_size.as_u64() && ids.len() <= config.max_count, "{context}");
                assert_eq!(sum.added + sum.too_large, sent, "{context}");
                assert_eq!(ids, (sum.oldest..sum.added).collect::<Vec<_>>(), "{context}");
            }
            if random.u8(0..10) == 0 {
                bodies = Bodies::open(dir.path(), &config).unwrap();
            }
        }
        assert!(sum.oldest > 0, "round {round}: {sum:?}");
    }
}

#[test]
fn a_torn_line_costs_nothing_else_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = bounds(1 << 20, 100);
    let one = [refused(b"one")];
    append(&mut Bodies::open(dir.path(), &config).unwrap(), &one);
    let path = path(&directory(dir.path()), 0);
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&text[..], &text[..text.len() / 2]].concat()).unwrap();
    let mut bodies = Bodies::open(dir.path(), &config).unwrap();
    append(&mut bodies, &one);
    assert_eq!(ids(dir.path()), [0, 1]);
    // And when there is nothing but a torn line.
    std::fs::remove_dir_all(directory(dir.path())).unwrap();
    append(&mut bodies, &one);
    assert_eq!(ids(dir.path()), [2], "what somebody removed by hand is made anew");
    let path = super::path(&directory(dir.path()), 2);
    std::fs::write(&path, &text[..9]).unwrap();
    append(&mut Bodies::open(dir.path(), &config).unwrap(), &one);
    assert_eq!(ids(dir.path()), [2]);
}

#[test]
fn what_was_replayed_is_marked_and_its_loss_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let config = bounds(1 << 20, 16);
    let mut bodies = Bodies::open(dir.path(), &config).unwrap();
    let batch: Vec<_> = (0..10).map(|_| refused(b"x")).collect();
    append(&mut bodies, &batch);
    mark_replayed(dir.path(), &[0, 1, 2, 7]).unwrap();
    let marked = || all(dir.path()).into_iter().filter(|found| found.replayed).map(|found| found.item.id);
    assert_eq!(marked().collect::<Vec<_>>(), [0, 1, 2, 7]);
    // There are two to a file.
    let lost: u64 = (0..17).map(|_| append(&mut bodies, &batch[..1]).oldest).sum();
    assert_eq!(ids(dir.path()).first(), Some(&12));
    assert_eq!(lost, 12 - 4);
    // Marks that come when their body is gone, or stay behind it, go at the next start.
    std::fs::write(marks_path(&directory(dir.path()), 0), "{\"id\":0}\n").unwrap();
    mark_replayed(dir.path(), &[0, 1]).unwrap();
    drop(Bodies::open(dir.path(), &config).unwrap());
    assert_eq!(numbers(&directory(dir.path()), ".replayed").unwrap(), [0; 0]);
}

#[test]
fn a_disk_that_refuses_costs_what_it_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let mut bodies = Bodies::open(dir.path(), &bounds(1 << 20, 100)).unwrap();
    append(&mut bodies, &[refused(b"first")]);
    // Where the next file would be made there is something that cannot be removed as a file.
    let blocked = path(&directory(dir.path()), 1);
    std::fs::create_dir(&blocked).unwrap();
    bodies.active = false;
    let (written, result) = bodies.append(&[refused(b"lost"), refused(b"lost")]);
    assert_eq!((written, result.is_err()), (Written { failed: 2, ..Written::default() }, true));
    std::fs::remove_dir(&blocked).unwrap();
    assert_eq!(append(&mut bodies, &[refused(b"second")]).added, 1);
    assert_eq!(ids(dir.path()), [0, 1]);
}
