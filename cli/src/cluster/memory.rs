//! What a node is told about the memory of its pods.

use gantry_agent::limits::{MemoryPolicy, MemoryReservation};

/// What requested memory is worth when a node has too little.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Reservation {
    /// Nothing: it is taken back as any other
    #[default]
    None,
    /// From Guaranteed pods it is never taken back (memory.min), from Burstable ones last (memory.low)
    TieredReservation,
}

/// Flags of a kubelet's configuration, which a kernel with cgroup v2 keeps.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Memory {
    /// Kill one process of a container that is out of memory, not all of them (cgroup v2)
    #[arg(long)]
    single_process_oom_kill: bool,
    /// What memory requests protect from being taken back (cgroup v2)
    #[arg(long, value_enum, value_name = "POLICY", default_value = "none")]
    memory_reservation_policy: Reservation,
}

impl Memory {
    pub(super) fn policy(self) -> MemoryPolicy {
        MemoryPolicy {
            single_process_oom_kill: self.single_process_oom_kill,
            reservation: match self.memory_reservation_policy {
                Reservation::None => MemoryReservation::None,
                Reservation::TieredReservation => MemoryReservation::Tiered,
            },
        }
    }

    /// As another process of this program is told.
    pub(super) fn arguments(self) -> Vec<&'static str> {
        let mut arguments = Vec::new();
        if self.single_process_oom_kill {
            arguments.push("--single-process-oom-kill");
        }
        if self.memory_reservation_policy == Reservation::TieredReservation {
            arguments.extend(["--memory-reservation-policy", "tiered-reservation"]);
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        memory: Memory,
    }

    #[test]
    fn what_one_process_is_told_it_tells_another() {
        let every = [
            &[][..],
            &["--single-process-oom-kill"],
            &["--memory-reservation-policy", "tiered-reservation"],
            &[
                "--single-process-oom-kill",
                "--memory-reservation-policy",
                "tiered-reservation",
            ],
        ];
        for arguments in every {
            let given = std::iter::once(&"gantry").chain(arguments);
            let memory = Command::parse_from(given).memory;
            assert_eq!(memory.arguments(), arguments);
            let single = arguments.contains(&"--single-process-oom-kill");
            assert_eq!(memory.policy().single_process_oom_kill, single);
        }
    }
}
