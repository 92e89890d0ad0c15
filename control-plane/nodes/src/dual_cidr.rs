//! Address ranges of a cluster: of IPv4, and of IPv6 beside it in a dual-stack cluster.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A range of IPv4 addresses and, in a dual-stack cluster, one of IPv6. Written as `10.244.0.0/16` or
/// `10.244.0.0/16,fd10:244::/48`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualCidr {
    /// Every cluster has it.
    pub v4: Ipv4Net,
    /// Beside it.
    pub v6: Option<Ipv6Net>,
}

impl DualCidr {
    /// Whether some address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let v6 = self.v6.zip(other.v6);
        meet(&self.v4.into(), &other.v4.into())
            || v6.is_some_and(|(own, other)| meet(&own.into(), &other.into()))
    }
}

/// Whether some address is in both.
pub(crate) fn meet(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

impl fmt::Display for DualCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.v4)?;
        match self.v6 {
            Some(v6) => write!(f, ",{v6}"),
            None => Ok(()),
        }
    }
}

impl FromStr for DualCidr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let ranges: Result<Vec<IpNet>> = text.split(',').map(range).collect();
        match *ranges? {
            [IpNet::V4(v4)] => Ok(Self { v4, v6: None }),
            [IpNet::V4(v4), IpNet::V6(v6)] => Ok(Self { v4, v6: Some(v6) }),
            _ => bail!(
                "\"{text}\": one range of IPv4, or one of IPv4 and then one of IPv6 with a comma between them"
            ),
        }
    }
}

/// A range, written by its first address: what is meant by any other is unclear.
fn range(text: &str) -> Result<IpNet> {
    let range: IpNet = text
        .parse()
        .map_err(|_| anyhow!("\"{text}\" is not an address range, such as 10.244.0.0/16"))?;
    ensure!(
        range == range.trunc(),
        "\"{text}\" has bits behind its prefix: write {}",
        range.trunc()
    );
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> DualCidr {
        text.parse().expect(text)
    }

    #[test]
    fn one_family_or_both_in_their_order() {
        for text in ["10.244.0.0/16", "10.244.0.0/16,fd10:244::/48"] {
            assert_eq!(parse(text).to_string(), text);
        }
        for (wrong, said) in [
            ("", "is not an address range"),
            ("10.244.0.0", "is not an address range"),
            ("10.244.0.1/16", "write 10.244.0.0/16"),
            ("fd10:244::/48", "one of IPv4 and then one of IPv6"),
            ("fd10:244::/48,10.244.0.0/16", "one of IPv4 and then"),
            ("10.1.0.0/16,10.2.0.0/16", "one of IPv4 and then"),
            ("10.1.0.0/16,fd10:244::/48,fd10:245::/48", "one of IPv4 and"),
        ] {
            let error = DualCidr::from_str(wrong).expect_err(wrong).to_string();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn an_overlap_in_either_family_is_one() {
        let pods = parse("10.244.0.0/16,fd10:244::/48");
        for (other, expected) in [
            ("10.96.0.0/12", false),
            ("10.96.0.0/12,fd10:96::/112", false),
            ("10.0.0.0/8", true),
            ("10.96.0.0/12,fd10:244:0:7::/112", true),
        ] {
            assert_eq!(pods.overlaps(&parse(other)), expected, "{other}");
            assert_eq!(parse(other).overlaps(&pods), expected, "{other}");
        }
    }
}
