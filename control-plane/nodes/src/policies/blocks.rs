//! IP blocks with exceptions, as the CIDRs that are left of them. Pure.

use ipnet::IpNet;

/// What is left of a block without its exceptions.
///
/// `10.0.0.0/8` except `10.128.0.0/9` is `10.0.0.0/9`. An exception costs at most one CIDR per bit between the block's
/// prefix and its own.
pub(super) fn without(block: IpNet, except: &[IpNet]) -> Vec<IpNet> {
    let mut left = Vec::new();
    take_out(block.trunc(), except, &mut left);
    left
}

fn take_out(block: IpNet, except: &[IpNet], left: &mut Vec<IpNet>) {
    if except.iter().any(|out| out.contains(&block)) {
        return;
    }
    // Each is looked at once for each bit between the block's prefix and its own, however many others there are.
    let inside: Vec<IpNet> = except
        .iter()
        .filter(|out| block.contains(*out))
        .copied()
        .collect();
    if inside.is_empty() {
        left.push(block);
        return;
    }
    // An exception is a true part of the block, which therefore has two halves.
    for half in block.subnets(block.prefix_len() + 1).into_iter().flatten() {
        take_out(half, &inside, left);
    }
}

/// The same addresses in as few CIDRs as possible, none of which overlap.
pub(super) fn union(blocks: &[IpNet]) -> Vec<IpNet> {
    IpNet::aggregate(&blocks.iter().map(IpNet::trunc).collect())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn exceptions_leave_the_rest() {
        for (block, except, left) in [
            ("10.0.0.0/8", vec![], vec!["10.0.0.0/8"]),
            ("10.9.9.9/8", vec![], vec!["10.0.0.0/8"]),
            ("10.0.0.0/8", vec!["10.128.0.0/9"], vec!["10.0.0.0/9"]),
            (
                "10.0.0.0/30",
                vec!["10.0.0.1/32"],
                vec!["10.0.0.0/32", "10.0.0.2/31"],
            ),
            ("10.0.0.0/8", vec!["10.0.0.0/8"], vec![]),
            ("10.0.0.0/8", vec!["0.0.0.0/0"], vec![]),
            ("10.0.0.0/31", vec!["10.0.0.0/32", "10.0.0.1/32"], vec![]),
            (
                "fd00::/16",
                vec!["fd00::/17", "10.0.0.0/8"],
                vec!["fd00:8000::/17"],
            ),
        ] {
            assert_eq!(
                without(block.parse().unwrap(), &nets(&except)),
                nets(&left),
                "{block} except {except:?}"
            );
        }
    }

    #[test]
    fn overlapping_blocks_become_one() {
        assert_eq!(
            union(&nets(&[
                "10.0.0.0/24",
                "10.0.0.7/32",
                "10.0.1.0/24",
                "fd00::/8",
                "fd01::/16"
            ])),
            nets(&["10.0.0.0/23", "fd00::/8"])
        );
    }

    fn net() -> impl Strategy<Value = IpNet> {
        (any::<u8>(), 24u8..=32).prop_map(|(last, length)| {
            IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)), length).unwrap()
        })
    }

    proptest! {
        #[test]
        fn an_address_is_left_when_it_is_in_the_block_and_in_no_exception(
            block in net(), except in proptest::collection::vec(net(), 0..5), last in any::<u8>(),
        ) {
            let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
            let expected = block.contains(&address) && !except.iter().any(|out| out.contains(&address));
            let left = without(block, &except);
            prop_assert_eq!(left.iter().filter(|net| net.contains(&address)).count(), usize::from(expected));
            prop_assert_eq!(union(&left).iter().any(|net| net.contains(&address)), expected);
        }
    }
}
