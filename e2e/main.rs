//! Whole processes: the shipped binary on real files, sockets and disks.

mod house;
