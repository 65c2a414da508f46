//! Threads that take what others leave.

#![expect(unsafe_code, reason = "two system calls that no library of ours has")]

/// Has the calling thread's reads and writes wait for everybody else's (the idle class of `ioprio_set(2)`; it is up to
/// the disk's scheduler what becomes of that), and gives it the smallest share of the processors. What the system
/// refuses is left as it is.
pub fn in_background() {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_IDLE: libc::c_int = 3;
    const CLASS_SHIFT: libc::c_int = 13;
    // SAFETY: neither call touches memory of ours: all arguments are numbers. Of the calling thread is what 0 means in
    // both, on Linux.
    unsafe {
        libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE << CLASS_SHIFT);
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_thread_alone_is_put_behind() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let after_name = stat.rsplit_once(") ").unwrap().1.to_owned();
            after_name.split(' ').nth(16).unwrap().to_owned()
        };
        let before = nice();
        let there = std::thread::spawn(move || {
            super::in_background();
            nice()
        });
        assert_eq!(there.join().unwrap(), "19");
        assert_eq!(nice(), before);
    }
}
