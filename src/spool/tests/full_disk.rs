//! A disk that somebody else has filled: what the spool has promised needs no more room than it has.

use super::*;

/// However a process ended and whenever the disk was full, the next one opens the spool, delivers, and makes room.
#[test]
fn on_a_full_disk_the_spool_opens_gives_all_it_has_and_lets_go_of_what_is_delivered() {
    for seed in seeds(300) {
        let case = Case(seed);
        let mut random = fastrand::Rng::with_seed(seed);
        let machine = Machine::new(random.u64(..));
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        let mut acknowledged = Vec::new();
        let mut store = |life: &mut Life, random: &mut fastrand::Rng| {
            let next = life.end() * 100;
            let request = events(next..next + random.u64(1..4), random.usize(10..900));
            let stored = life.store(request.clone());
            acknowledged.extend(request.into_iter().filter(|_| stored.is_ok()));
            stored
        };
        for _ in 0..random.usize(1..20) {
            store(&mut life, &mut random).unwrap();
        }
        machine.fill();
        // The segment in use has its room.
        for _ in 0..random.usize(0..10) {
            match store(&mut life, &mut random) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.to_string(), no_room(), "{error:?}"),
            }
        }
        if random.bool() {
            machine.cut_power_after(random.u64(1..4));
            while !machine.is_dark() {
                let _ = store(&mut life, &mut random);
                life.writer.seal();
            }
        }
        for _ in 0..random.usize(1..4) {
            if random.bool() {
                machine.kill()
            } else {
                machine.crash()
            }
            machine.cut_power_after(random.u64(1..12));
            drop(Life::begin(&machine, &config(), &["analytics"]));
        }
        machine.crash();
        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        let found = life.events_from(0);
        assert_eq!(found[..acknowledged.len()], acknowledged);
        assert_eq!(life.store(vec![event(1 << 40, 10)]).unwrap_err().to_string(), no_room());
        life.settle(life.end());
        assert_eq!((life.start(), life.damaged_records()), (life.end(), 0));
        assert!(machine.files().keys().all(|name| segment::base(name).is_none()), "{:?}", machine.files());
        machine.crash();

        let mut life = Life::begin(&machine, &config(), &["analytics"]).unwrap();
        assert_eq!(life.end(), found.len() as u64);
        machine.free();
        life.store(vec![event(1 << 40, 10)]).unwrap();
        drop(case);
    }
}

fn no_room() -> String {
    AppendError::Failed { cause: "No space left on device (os error 28)".to_owned() }.to_string()
}
