//! Threads that take what others leave.

#![expect(unsafe_code, reason = "three system calls that no library of ours has")]

/// Has the calling thread's reads and writes wait for everybody else's (the idle class of `ioprio_set(2)`; it is up to
/// the disk's scheduler what becomes of that), and gives it the processors that others leave (`SCHED_IDLE` of `sched(7)`).
/// At the lowest `nice` alone it kept one from a thread that woke up for a slice of up to 3 ms (`perf sched` of a capture).
/// What the system refuses is left as it is.
///
/// Others must not wait for what such a thread holds: it may not run for long.
pub fn in_background() {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_IDLE: libc::c_int = 3;
    const CLASS_SHIFT: libc::c_int = 13;
    let nothing_more = libc::sched_param { sched_priority: 0 };
    // SAFETY: `sched_setscheduler` reads what it is pointed to, which lives until it returns; all other arguments are
    // numbers. Of the calling thread is what 0 means in each, on Linux.
    unsafe {
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE << CLASS_SHIFT);
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const nothing_more);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_thread_alone_is_put_behind() {
        // Of `proc_pid_stat(5)`, counted from behind the name.
        let of = |field: usize| {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let after_name = stat.rsplit_once(") ").unwrap().1.to_owned();
            after_name.split(' ').nth(field).unwrap().to_owned()
        };
        let nice_and_policy = move || (of(16), of(38));
        let before = nice_and_policy();
        let there = std::thread::spawn(move || {
            super::in_background();
            nice_and_policy()
        });
        assert_eq!(there.join().unwrap(), ("19".to_owned(), libc::SCHED_IDLE.to_string()));
        assert_eq!(nice_and_policy(), before);
    }
}
