use super::dir::MARKS;
use super::*;
use serde::Deserialize;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Entry {
    number: u64,
    text: String,
}

impl Line for Entry {
    fn number(&self) -> u64 {
        self.number
    }

    fn set_number(&mut self, number: u64) {
        self.number = number;
    }
}

fn entries(sizes: &[usize]) -> Vec<Entry> {
    sizes.iter().map(|size| Entry { number: 0, text: "x".repeat(*size) }).collect()
}

fn open(dir: &Dir, max_size: u64) -> Store {
    Store::new(dir.clone(), max_size, AtBound::RemoveOldest)
}

fn append(store: &mut Store, sizes: &[usize]) -> Appended {
    let appended = store.append(&mut entries(sizes)).unwrap();
    store.sync().unwrap();
    appended
}

fn all(dir: &Dir) -> Vec<Found<Entry>> {
    let mut reader = Reader::new(dir.clone()).unwrap();
    let mut all = Vec::new();
    while let Some(found) = reader.read_next().unwrap() {
        all.push(found);
    }
    assert_eq!(reader.damaged(), 0);
    all
}

fn numbers(dir: &Dir) -> Vec<u64> {
    all(dir).iter().map(|found| found.item.number).collect()
}

fn replayed(dir: &Dir) -> Vec<u64> {
    all(dir).into_iter().filter(|found| found.replayed).map(|found| found.item.number).collect()
}

#[test]
fn the_bound_holds_after_every_write_and_the_oldest_go_first() {
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..20 {
        let spool = tempfile::tempdir().unwrap();
        let dir = Dir::new(spool.path(), "rejected");
        let max_size = random.u64(2_000..20_000);
        let mut store = open(&dir, max_size);
        let (mut sum, mut sent) = (Appended::default(), 0);
        for _ in 0..60 {
            let sizes: Vec<usize> = (0..random.usize(0..8)).map(|_| random.usize(0..3_000)).collect();
            let appended = store.append(&mut entries(&sizes)).unwrap();
            sent += sizes.len() as u64;
            sum.written += appended.written;
            sum.removed += appended.removed;
            sum.too_large += appended.too_large;
            let context = format!("round {round}, {max_size} bytes, {sum:?}");
            assert!(dir.size().unwrap() <= max_size, "{context}");
            assert_eq!(sum.written as u64 + sum.too_large, sent, "{context}");
            assert_eq!(numbers(&dir), (sum.removed..sum.written as u64).collect::<Vec<_>>(), "{context}");
            if random.u8(0..10) == 0 {
                store = open(&dir, max_size);
            }
        }
        assert!(sum.removed > 0, "round {round}: {sum:?}");
    }
}

#[test]
fn a_full_store_that_refuses_takes_the_first_lines_and_keeps_all() {
    let spool = tempfile::tempdir().unwrap();
    let dir = Dir::new(spool.path(), "a/b");
    let mut store = Store::new(dir.clone(), 1000, AtBound::Refuse);
    assert_eq!(append(&mut store, &[200; 9]).written, 4);
    assert_eq!(append(&mut store, &[200; 9]).written, 0);
    assert_eq!(append(&mut store, &[10]).written, 1);
    assert_eq!(append(&mut store, &[2000]), Appended::default());
    assert_eq!(numbers(&dir), [0, 1, 2, 3, 4]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir.path()), mode(&spool.path().join("a")), mode(&dir.file(0, LINES))), (0o700, 0o700, 0o600));
}

#[test]
fn a_torn_line_costs_no_other_a_damaged_one_is_counted_and_numbers_go_on() {
    let spool = tempfile::tempdir().unwrap();
    let dir = Dir::new(spool.path(), "x");
    append(&mut open(&dir, 1 << 20), &[1, 2]);
    let path = dir.file(0, LINES);
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&text[..], &text[..text.len() / 3]].concat()).unwrap();
    let mut store = open(&dir, 1 << 20);
    append(&mut store, &[3]);
    assert_eq!(numbers(&dir), [0, 1, 2]);
    // A store that somebody has removed by hand is made anew.
    std::fs::remove_dir_all(dir.path()).unwrap();
    append(&mut store, &[4]);
    assert_eq!(numbers(&dir), [3]);
    // With nothing but a torn line.
    std::fs::write(dir.file(3, LINES), &text[..9]).unwrap();
    append(&mut open(&dir, 1 << 20), &[5]);
    assert_eq!(numbers(&dir), [3]);

    append(&mut store, &[6, 7, 8]);
    let path = dir.file(3, LINES);
    let mut text = std::fs::read(&path).unwrap();
    text[2] ^= 0x80;
    std::fs::write(&path, text).unwrap();
    let mut reader = Reader::<Entry>::new(dir.clone()).unwrap();
    let mut count = 0;
    while reader.read_next().unwrap().is_some() {
        count += 1;
    }
    assert_eq!((count, reader.damaged()), (3, 1));
}

#[test]
fn lines_that_come_while_others_are_read_are_left_out() {
    let spool = tempfile::tempdir().unwrap();
    let dir = Dir::new(spool.path(), "x");
    let mut store = open(&dir, 1 << 20);
    append(&mut store, &[1, 2]);
    let mut reader = Reader::<Entry>::new(dir.clone()).unwrap();
    assert!(reader.read_next().unwrap().is_some());
    append(&mut store, &[3]);
    assert!(reader.read_next().unwrap().is_some());
    assert!(reader.read_next().unwrap().is_none());
    assert!(Reader::<Entry>::new(Dir::new(spool.path(), "none")).unwrap().read_next().unwrap().is_none());
}

#[test]
fn replayed_lines_are_marked_and_their_removal_is_no_loss() {
    let spool = tempfile::tempdir().unwrap();
    let dir = Dir::new(spool.path(), "x");
    let mut store = open(&dir, 8000);
    append(&mut store, &[400; 10]);
    dir.mark_replayed(&[0, 1, 2, 7]).unwrap();
    // A crash cut a mark off.
    let path = dir.file(6, MARKS);
    std::fs::write(&path, [std::fs::read(&path).unwrap(), b"{\"num".to_vec()].concat()).unwrap();
    dir.mark_replayed(&[8]).unwrap();
    assert_eq!(replayed(&dir), [0, 1, 2, 7, 8]);
    let lost: u64 = (0..17).map(|_| append(&mut store, &[400]).removed).sum();
    let first = numbers(&dir)[0];
    assert!(first > 8, "{first}");
    assert_eq!(lost, first - 5);
    dir.mark_replayed(&[0, 1]).unwrap();
    assert_eq!(replayed(&dir), [0; 0]);
}

#[test]
fn pruned_lines_are_gone_for_good_beside_a_store_that_goes_on() {
    let spool = tempfile::tempdir().unwrap();
    let dir = Dir::new(spool.path(), "x");
    let mut store = open(&dir, 8000);
    append(&mut store, &[300; 9]);
    dir.mark_replayed(&[1, 4]).unwrap();
    let before = dir.size().unwrap();
    assert_eq!(dir.prune(&[0, 1, 5, 77].into()).unwrap(), 3);
    assert!(dir.size().unwrap() < before - 900);
    assert_eq!((numbers(&dir), replayed(&dir)), (vec![2, 3, 4, 6, 7, 8], vec![4]));
    append(&mut store, &[300]);
    assert_eq!(numbers(&dir).last(), Some(&9));
    assert_eq!(dir.prune(&(0..10).collect()).unwrap(), 7);
    assert_eq!(numbers(&dir), [0; 0]);
    append(&mut store, &[300; 3]);
    assert_eq!(dir.prune(&[11, 12].into()).unwrap(), 2);
    append(&mut open(&dir, 8000), &[300]);
    append(&mut store, &[300]);
    assert_eq!(numbers(&dir), [10, 13, 14]);
    dir.prune(&(0..15).collect()).unwrap();
    // No number is used twice, not by a process that never saw them either.
    append(&mut open(&dir, 8000), &[300]);
    append(&mut store, &[300]);
    assert_eq!(numbers(&dir).first(), Some(&15));
}

#[test]
fn a_disk_that_refuses_costs_only_the_refused_lines() {
    let spool = tempfile::tempdir().unwrap();
    let dir = Dir::new(spool.path(), "x");
    append(&mut open(&dir, 1 << 20), &[1]);
    // In the way of the next file there is something that cannot be removed as a file.
    let blocked = dir.file(1, LINES);
    std::fs::create_dir(&blocked).unwrap();
    let mut store = open(&dir, 1 << 20);
    assert!(store.append(&mut entries(&[2, 3])).is_err());
    std::fs::remove_dir(&blocked).unwrap();
    append(&mut store, &[4]);
    assert_eq!(numbers(&dir), [0, 1]);
}

#[test]
fn a_process_that_holds_the_lock_for_long_is_an_error_and_not_a_hang() {
    let spool = tempfile::tempdir().unwrap();
    let dir = Dir::new(spool.path(), "x");
    let mut store = open(&dir, 1 << 20);
    append(&mut store, &[1]);
    let lock = dir.lock().unwrap();
    assert!(store.append(&mut entries(&[2])).is_err());
    drop(lock);
    append(&mut store, &[2]);
    assert_eq!(numbers(&dir), [0, 1]);
}
