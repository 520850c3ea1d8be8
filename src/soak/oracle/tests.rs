use super::*;

/// One conversation of which `acknowledged` events were, and the order in which they came.
fn judge(acknowledged: usize, arrivals: &[usize]) -> Verdict {
    judge_emptied(acknowledged, 0, arrivals)
}

fn judge_emptied(acknowledged: usize, gone: usize, arrivals: &[usize]) -> Verdict {
    let mut oracle = Oracle::default();
    for _ in 0..acknowledged {
        oracle.sent(0, true);
        oracle.acknowledged(0);
    }
    oracle.emptied(0, gone);
    arrive(&mut oracle, arrivals);
    oracle.verdict()
}

fn arrive(oracle: &mut Oracle, numbers: &[usize]) {
    for &number in numbers {
        oracle.arrived(Delivery { conversation: 0, number, sequence: 0, at: Position { place: 0, offset: 0 } });
    }
}

fn counts(verdict: &Verdict) -> (u64, usize, u64, u64) {
    (verdict.delivered, verdict.lost.len(), verdict.duplicated, verdict.reordered)
}

#[test]
fn complete_and_in_order_is_clean() {
    let verdict = judge(5, &[0, 1, 2, 3, 4]);
    assert_eq!(counts(&verdict), (5, 0, 0, 0));
    assert!(verdict.is_clean() && verdict.findings.is_empty());
}

#[test]
fn redelivery_from_any_point_is_duplication_and_no_more() {
    for from in 0..5 {
        let again: Vec<_> = (0..5).chain(from..8).collect();
        let verdict = judge(8, &again);
        assert_eq!(counts(&verdict), (8, 0, 5 - from as u64, 0), "from {from}");
        assert!(verdict.is_clean());
    }
    assert_eq!(counts(&judge(5, &[0, 1, 1, 2, 0, 1, 2, 3, 2, 3, 4])), (5, 0, 6, 0));
}

#[test]
fn one_that_never_comes_is_lost_and_nothing_is_reordered() {
    let verdict = judge(5, &[0, 1, 3, 4]);
    assert_eq!(counts(&verdict), (4, 1, 0, 0));
    assert_eq!(verdict.lost, [(0, 2)]);
    let at = Some(Position { place: 0, offset: 0 });
    assert_eq!(verdict.findings, [Finding { fault: Fault::Lost, conversation: 0, number: 2, at }]);
    assert_eq!(judge(3, &[]).lost, [(0, 0), (0, 1), (0, 2)]);
    assert_eq!(judge(3, &[0, 1]).lost, [(0, 2)]);
    assert_eq!(judge(3, &[1, 2]).lost, [(0, 0)]);
    // Nor does redelivery of what is there find it again.
    assert_eq!(counts(&judge(5, &[0, 1, 3, 1, 3, 4])), (4, 1, 2, 0));
}

#[test]
fn two_swapped_are_one_reordered() {
    let verdict = judge(5, &[0, 2, 1, 3, 4]);
    assert_eq!(counts(&verdict), (5, 0, 0, 1));
    assert!(!verdict.is_clean());
    assert_eq!(verdict.findings[0].fault, Fault::Overtaken { later: 2 });
    assert_eq!(counts(&judge(3, &[1, 2, 0])), (3, 0, 0, 1));
}

#[test]
fn redelivery_that_leaves_something_out_is_reordered() {
    let verdict = judge(5, &[0, 1, 2, 3, 1, 3, 4]);
    assert_eq!(counts(&verdict), (5, 0, 2, 1));
    assert_eq!(verdict.findings[0].fault, Fault::Skipped { last: 1 });
    assert_eq!(counts(&judge(4, &[0, 1, 2, 0, 3])).3, 1);
}

#[test]
fn what_is_not_acknowledged_may_be_there_or_not() {
    let mut oracle = Oracle::default();
    oracle.sent(0, true);
    arrive(&mut oracle, &[0]);
    assert_eq!((oracle.missing(), oracle.delivered()), (0, 1));
    oracle.acknowledged(0);
    assert_eq!(oracle.missing(), 0);
    oracle.sent(0, true);
    assert!(oracle.verdict().is_clean());
    oracle.acknowledged(0);
    assert_eq!((oracle.missing(), oracle.verdict().lost), (1, vec![(0, 1)]));
    arrive(&mut oracle, &[1]);
    assert_eq!(oracle.missing(), 0);
    assert!(oracle.verdict().is_clean());
}

#[test]
fn what_was_never_sent_or_is_not_wanted_is_unexpected() {
    let mut oracle = Oracle::default();
    for wanted in [true, false, true] {
        oracle.sent(0, wanted);
        oracle.acknowledged(0);
    }
    arrive(&mut oracle, &[0, 2]);
    assert_eq!((oracle.missing(), oracle.verdict().is_clean()), (0, true));
    arrive(&mut oracle, &[1, 3]);
    oracle.arrived(Delivery { conversation: 1, number: 0, sequence: 0, at: Position { place: 0, offset: 0 } });
    assert_eq!(oracle.verdict().unexpected, 3);
    assert!(!oracle.verdict().is_clean());
}

#[test]
fn an_emptied_destination_may_lack_a_beginning_but_nothing_after_it() {
    assert!(judge_emptied(6, 3, &[3, 4, 5]).is_clean());
    assert!(judge_emptied(6, 3, &[1, 2, 3, 4, 5]).is_clean());
    // It had 1 before, and gets it again after a restart.
    assert!(judge_emptied(6, 3, &[2, 3, 1, 2, 3, 4, 5]).is_clean());
    assert!(judge_emptied(3, 3, &[]).is_clean());
    assert_eq!(judge_emptied(6, 3, &[4, 5]).lost, [(0, 3)]);
    assert_eq!(judge_emptied(6, 3, &[1, 3, 4, 5]).lost, [(0, 2)]);
    assert_eq!(counts(&judge_emptied(6, 3, &[1, 3, 2, 3, 4, 5])).3, 1);
    assert_eq!(judge_emptied(4, 3, &[]).lost, [(0, 3)]);
}

#[test]
fn a_conversation_stays_in_one_place_for_each_lane() {
    let mut oracle = Oracle::default();
    let mut arrived = |number, sequence, place| {
        oracle.sent(0, true);
        oracle.acknowledged(0);
        oracle.arrived(Delivery { conversation: 0, number, sequence, at: Position { place, offset: 7 } });
        oracle.verdict().reordered
    };
    assert_eq!(arrived(0, 1, 3), 0);
    assert_eq!(arrived(1, 2, 4), 0);
    assert_eq!(arrived(2, 1, 3), 0);
    assert_eq!(arrived(3, 1, 4), 1);
    let before = Position { place: 3, offset: 7 };
    assert_eq!(oracle.verdict().findings[0].fault, Fault::Elsewhere { before });
    // Which sequence of the two came first cannot be known.
    let mut oracle = Oracle::default();
    for _ in 0..4 {
        oracle.sent(0, true);
        oracle.acknowledged(0);
    }
    for (number, sequence) in [(2, 1), (3, 1), (0, 2), (1, 2)] {
        oracle.arrived(Delivery { conversation: 0, number, sequence, at: Position { place: 0, offset: 0 } });
    }
    assert!(oracle.verdict().is_clean());
}

#[test]
fn conversations_do_not_mix_and_faults_beyond_the_first_are_only_counted() {
    let mut oracle = Oracle::default();
    for conversation in 0..20 {
        for number in 0..70 {
            oracle.sent(conversation, true);
            oracle.acknowledged(conversation);
            if number != 65 {
                let at = Position { place: conversation as u32, offset: number as u64 };
                oracle.arrived(Delivery { conversation, number, sequence: 0, at });
            }
        }
    }
    let verdict = oracle.verdict();
    assert_eq!(counts(&verdict), (20 * 69, 20, 0, 0));
    assert_eq!(verdict.findings.len(), FINDINGS);
    assert!(verdict.lost.iter().all(|(_, number)| *number == 65));
}

/// Every order in which up to six events of up to four can come, judged by the plain rule: after any event may come any earlier one,
/// the same, or the next one, but none beyond; and in the end all are there.
#[test]
fn every_short_history_is_judged_by_the_plain_rule() {
    let mut judged = 0;
    for acknowledged in 1..=4_usize {
        for gone in 0..=acknowledged {
            for length in 0..=6 {
                for history in 0..acknowledged.pow(length) {
                    let arrivals: Vec<_> =
                        (0..length).map(|step| history / acknowledged.pow(step) % acknowledged).collect();
                    let mut allowed = gone;
                    let in_order = arrivals.iter().all(|&number| number <= std::mem::replace(&mut allowed, number + 1));
                    let end = arrivals.iter().max().map_or(gone, |last| last + 1);
                    let verdict = judge_emptied(acknowledged, gone, &arrivals);
                    let plain = in_order && end >= acknowledged;
                    let about = format!("{acknowledged} acknowledged, {gone} gone: {arrivals:?}: {verdict:?}");
                    // Of what came again before the first one that was there, the plain rule does not ask for what follows.
                    assert!(verdict.is_clean() == plain || plain && gone > 0, "{about}");
                    judged += 1;
                }
            }
        }
    }
    assert!(judged > 30_000, "{judged}");
}
