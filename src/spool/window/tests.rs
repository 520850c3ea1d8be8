use super::*;

fn window(capacity: usize) -> Window<Arc<str>> {
    Window::new("test", Duration::from_secs(10), capacity)
}

fn entry(n: u8, at: u64) -> Entry<Arc<str>> {
    Entry { key: [n; 16], offset: n.into(), stored: Arrival(at), value: format!("value {n}").into() }
}

fn held<const N: usize>(window: &Window<Arc<str>>, keys: [u8; N], now: u64) -> [bool; N] {
    keys.map(|n| window.get(&[n; 16], Arrival(now)).is_some())
}

#[test]
fn keys_are_dropped_by_age_and_by_number() {
    let mut window = window(3);
    (0..4).for_each(|n| window.insert(entry(n, 1_000 * u64::from(n))));
    assert_eq!(held(&window, [0, 1, 2, 3], 3_000), [false, true, true, true]);
    assert_eq!(held(&window, [1, 2, 3], 11_001), [false, true, true], "also before another one comes");
    window.insert(entry(9, 12_500));
    assert_eq!(held(&window, [1, 2, 3, 9], 12_500), [false, false, true, true]);
    assert_eq!((window.entries.len(), window.len()), (2, 2));
}

#[test]
fn a_clock_that_is_set_back_does_not_make_the_window_longer() {
    let mut window = window(100);
    window.insert(entry(1, 90_000));
    assert_eq!(held(&window, [1], 1_000), [false]);
    window.insert(entry(2, 1_000));
    assert_eq!(window.len(), 1);
    assert_eq!((held(&window, [2], 11_000), held(&window, [2], 11_001)), ([true], [false]));
}

#[test]
fn a_key_that_was_forgotten_or_added_again_outlives_its_first_entry() {
    for forgotten in [true, false] {
        let mut window = window(3);
        (0..3).for_each(|n| window.insert(entry(n, 1_000)));
        if forgotten {
            window.forget(&(1..2));
            assert_eq!(held(&window, [0, 1, 2], 1_000), [true, false, true]);
        }
        window.insert(Entry { offset: 7, ..entry(1, 1_000) });
        (8..10).for_each(|n| window.insert(entry(n, 1_000)));
        assert_eq!(held(&window, [0, 1, 2, 8, 9], 1_000), [false, true, false, true, true]);
        assert_eq!(window.get(&[1; 16], Arrival(1_000)).unwrap().offset, 7);
    }
}

/// Read backwards, from any point on, gives what came in forwards.
#[test]
fn a_window_is_recalled_as_it_was() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let capacity = random.usize(1..30);
        let (mut lived, mut all, mut now) = (window(capacity), Vec::new(), 50_000);
        for offset in 0..random.u64(1..100) {
            now += random.u64(0..1_000);
            let value = format!("value {}", random.u8(..3)).into();
            let entry = Entry { key: [random.u8(..20); 16], offset, stored: Arrival(now), value };
            lived.insert(entry.clone());
            all.push(entry);
        }
        let mut recalled = window(capacity);
        all.into_iter().rev().for_each(|entry| recalled.recall(entry, Arrival(now)));
        for _ in 0..20 {
            assert_eq!(recalled.entries, lived.entries);
            for key in 0..20 {
                assert_eq!(recalled.get(&[key; 16], Arrival(now)), lived.get(&[key; 16], Arrival(now)));
            }
            now += 500;
            let next = entry(random.u8(..20), now);
            lived.insert(next.clone());
            recalled.insert(next);
        }
    }
}

#[test]
fn a_file_comes_back_complete_or_not_at_all() {
    let mut window = window(10);
    assert_eq!(decode::<Arc<str>>(&window.encode(&(0..100))), Some((100, Vec::new())));
    (0..5).for_each(|n| window.insert(entry(n, 1_000)));
    let bytes = window.encode(&(1..3));
    assert_eq!(decode(&bytes), Some((3, vec![entry(1, 1_000), entry(2, 1_000)])));
    window.insert(Entry { offset: 6, ..entry(1, 1_000) });
    assert_eq!(window.encode(&(1..3)), bytes, "an entry that was replaced counts for the capacity");
    window.forget(&(2..3));
    assert_eq!(decode(&window.encode(&(1..3))), Some((3, vec![entry(1, 1_000)])));
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        let none = (decode::<Arc<str>>(&damaged), decode::<Arc<str>>(&bytes[..at]));
        assert_eq!(none, (None, None));
    }
}

#[test]
fn a_window_knows_since_when_it_has_dropped_no_key_that_it_should_hold() {
    let mut window = window(2);
    assert_eq!(window.complete_since(Arrival(25_000)), Some(Arrival(15_000)));
    for n in 1..=3 {
        window.insert(entry(n, 20_000 + u64::from(n)));
    }
    assert_eq!(window.complete_since(Arrival(25_000)), Some(Arrival(20_002)), "the first one had to go");
    assert_eq!(window.complete_since(Arrival(35_000)), Some(Arrival(25_000)));
    assert_eq!(super::Window::<()>::new("test", Duration::ZERO, 2).complete_since(Arrival(25_000)), None);
}
