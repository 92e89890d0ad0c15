//! Attacks that once succeeded, and their kin, against clusters that run: from inside a pod, as a node, as a user, as nobody.
//! `make attack` prints a line for each; what takes minutes is small here and whole with `GANTRY_ATTACK=full`.
//!
//! A test's name begins with the number of its line in docs/security.md.

mod clients;
mod disks;
mod documents;
mod nodes;
mod packets;
mod pods;
mod privileges;
mod refusals;
mod state;
mod users;
