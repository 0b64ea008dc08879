//! Permission bits.

/// What a write by an unprivileged process leaves of the mode of a file: no set-user-id bit, and no set-group-id bit if
/// the group may execute it (`should_remove_suid` in the kernel); without that it is a lock mark.
pub fn without_set_id(mode: u32) -> u32 {
    if mode & 0o010 == 0 { mode & !0o4000 } else { mode & !0o6000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_group_id_goes_only_with_group_execution() {
        for (before, after) in [(0o6777, 0o0777), (0o6767, 0o2767), (0o4755, 0o0755), (0o1644, 0o1644)] {
            assert_eq!(without_set_id(before), after, "{before:o}");
        }
    }
}
