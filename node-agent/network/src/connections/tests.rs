use proptest::prelude::*;

use super::*;

fn counters(begun: u64, accepted: u64, established: u64) -> Counters {
    Counters {
        begun,
        accepted,
        established,
    }
}

#[test]
fn sockets_are_looked_at_while_a_pod_connects_to_others_and_no_more_often_than_every_ten_seconds() {
    let at = Instant::now();
    let looked = |counters: Counters, open: u64| Some(Looked { at, counters, open });
    for (known, found, seconds, due, why) in [
        (None, counters(0, 9, 9), 0, false, "it connects to nobody"),
        (None, counters(1, 9, 9), 0, true, "never looked at"),
        (
            looked(counters(1, 0, 1), 0),
            counters(2, 0, 2),
            9,
            false,
            "too early",
        ),
        (
            looked(counters(1, 0, 1), 0),
            counters(2, 0, 2),
            10,
            true,
            "it has connected",
        ),
        (
            looked(counters(1, 0, 1), 0),
            counters(1, 0, 1),
            10,
            false,
            "nothing has changed",
        ),
        (
            looked(counters(1, 0, 1), 0),
            counters(1, 1, 1),
            10,
            true,
            "its own may be gone",
        ),
        (
            looked(counters(1, 3, 3), 3),
            counters(1, 5, 4),
            10,
            false,
            "it has none of its own",
        ),
    ] {
        let now = at + Duration::from_secs(seconds);
        assert_eq!(is_due(known.as_ref(), found, now), due, "{why}");
    }
}

#[test]
fn what_a_pod_has_opened_itself_is_taken_off() {
    let looked = |counters: Counters, open: u64| Looked {
        at: Instant::now(),
        counters,
        open,
    };
    assert_eq!(open(None, counters(0, 9, 4)), 4);
    assert_eq!(open(None, counters(5, 1, 4)), 1, "it has accepted one");
    let then = looked(counters(3, 7, 5), 2);
    for (now, expected, why) in [
        (counters(3, 7, 5), 2, "nothing has changed"),
        (counters(3, 9, 7), 4, "two more came"),
        (counters(53, 7, 55), 2, "it has opened fifty more"),
        (
            counters(3, 7, 1),
            1,
            "whose the one is that is left, nobody knows",
        ),
        (counters(3, 8, 1), 1, "and one came"),
    ] {
        assert_eq!(open(Some(&then), now), expected, "{why}");
    }
}

proptest! {
    /// A pod opens, accepts and loses connections as it likes, and is looked at now and then.
    #[test]
    fn those_of_others_are_all_counted_and_with_them_no_more_than_have_closed_since(
        steps in proptest::collection::vec((0_u64..4, 0_u64..4, 0_u64..4, 0_u64..4, any::<bool>()), 1..60),
    ) {
        let (mut own, mut others, mut closed) = (0_u64, 0_u64, 0_u64);
        let (mut begun, mut accepted) = (0_u64, 0_u64);
        let mut looked: Option<Looked> = None;
        for (opens, accepts, loses_own, loses_others, looks) in steps {
            (begun, accepted) = (begun + opens, accepted + accepts);
            own = (own + opens).saturating_sub(loses_own);
            closed += loses_others.min(others + accepts);
            others = (others + accepts).saturating_sub(loses_others);
            let now = counters(begun, accepted, own + others);
            if looks {
                closed = 0;
                looked = Some(Looked { at: Instant::now(), counters: now, open: others });
            }
            let said = open(looked.as_ref(), now);
            prop_assert!(said >= others);
            prop_assert!(said <= others + closed.min(own));
            prop_assert!(said <= accepted);
        }
    }
}
