//! Whole processes: the shipped binary on real files, sockets and disks.
//!
//! Everything here passes without root. The tests named `real_…` need root, debootstrap, QEMU, strace, etcd
//! and the tools of file systems, and run only with `FOREBAY_E2E=1`.

mod agents;
mod away;
mod caches;
mod captures;
mod care;
mod chaos;
mod clusters;
mod disks;
mod doubles;
mod durable;
mod etcd;
mod exports;
mod faults;
mod garage;
mod graduation;
mod grid;
mod ground;
mod guests;
mod harness;
mod house;
mod journeys;
mod keeps;
mod kills;
mod leases;
mod life;
mod member;
mod nbd;
mod network;
mod operator;
mod people;
mod placing;
mod pools;
mod power;
mod qmp;
mod real;
mod records;
mod refusals;
mod replicas;
mod resizes;
mod restores;
mod retention;
mod running;
mod saves;
mod services;
mod shared;
mod sick;
mod snapshots;
mod stats;
mod tour;
mod traces;
mod trust;
mod volumes;
mod words;
