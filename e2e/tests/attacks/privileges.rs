//! What every process of ours may do, beside what the table says.
