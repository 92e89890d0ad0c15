//! Profiles, and what calls meet under them.

use super::*;

#[test]
fn every_name_of_the_default_profile_exists() {
    let extra = default::WITH_CAPABILITY.iter().map(|(_, names)| *names);
    for name in extra
        .chain([default::ALLOWED])
        .flat_map(str::split_ascii_whitespace)
    {
        assert!(
            calls::number(name).is_some() || cfg!(not(target_arch = "x86_64")),
            "{name}"
        );
    }
}

#[test]
fn what_is_written_is_what_is_loaded() {
    let dir = std::env::temp_dir().join(format!("gantry-seccomp-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let content = prepare(&Seccomp::RuntimeDefault, &BTreeSet::new()).unwrap();
    fs::write(dir.join(FILE), &*content).unwrap();
    assert_eq!(load(&dir).unwrap(), compile_default(&[], false).unwrap());
    fs::write(dir.join(FILE), &content[..content.len() - 3]).unwrap();
    assert!(load(&dir).is_err(), "a truncated filter must not load");
    fs::write(dir.join(FILE), b"").unwrap();
    assert!(load(&dir).is_err(), "an empty file is not a filter");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn refuses_a_profile_it_does_not_understand() {
    for text in [
        r#"{"defaultAction": "SCMP_ACT_WHATEVER"}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}"#,
    ] {
        let profile: Profile = serde_json::from_str(text).unwrap();
        assert!(profile.compile().is_err(), "{text}");
    }
}

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

/// What a call meets: the strictest answer of all programs, found as the kernel does.
fn judge(programs: &[Program], number: i64, args: &[u64]) -> u32 {
    // struct seccomp_data: the number, the architecture, where the call comes from, six arguments.
    let mut data = [0u32; 16];
    data[0] = u32::try_from(number).unwrap();
    data[1] = match architecture().unwrap() {
        TargetArch::x86_64 => 0xc000_003e,
        TargetArch::aarch64 => 0xc000_00b7,
        TargetArch::riscv64 => 0xc000_00f3,
    };
    for (index, arg) in args.iter().enumerate() {
        data[4 + index * 2] = *arg as u32;
        data[5 + index * 2] = (arg >> 32) as u32;
    }
    let answers = programs.iter().map(|program| answer(program, &data));
    // Seen as signed numbers, stricter ones are smaller.
    answers.min_by_key(|answer| answer.cast_signed()).unwrap()
}

fn answer(program: &Program, data: &[u32; 16]) -> u32 {
    let (mut at, mut register) = (0, 0u32);
    loop {
        let sock_filter { code, jt, jf, k } = program[at].clone();
        at += 1;
        let code = u32::from(code);
        let jump = |taken: bool| usize::from(if taken { jt } else { jf });
        match (code & 0x07, code & 0xf0) {
            (libc::BPF_LD, _) => register = data[k as usize / 4],
            (libc::BPF_ALU, libc::BPF_AND) => register &= k,
            (libc::BPF_JMP, libc::BPF_JA) => at += k as usize,
            (libc::BPF_JMP, libc::BPF_JEQ) => at += jump(register == k),
            (libc::BPF_JMP, libc::BPF_JGT) => at += jump(register > k),
            (libc::BPF_JMP, libc::BPF_JGE) => at += jump(register >= k),
            (libc::BPF_RET, _) => return k,
            _ => panic!("an instruction {code:#x}"),
        }
    }
}

#[test]
fn the_upper_half_of_an_int_changes_nothing() {
    let programs = compile_default(&[], false).unwrap();
    let vsock = u64::from(libc::AF_VSOCK.unsigned_abs());
    let inet = u64::from(libc::AF_INET.unsigned_abs());
    for upper in [0, 1 << 32, 1 << 63, u64::MAX << 32] {
        let socket = |family: u64| judge(&programs, libc::SYS_socket, &[family | upper, 1, 0]);
        assert_ne!(socket(vsock), ALLOWED, "{upper:#x}");
        assert_eq!(socket(inet), ALLOWED, "{upper:#x}");
        let personality = |kind: u64| judge(&programs, libc::SYS_personality, &[kind | upper]);
        assert_ne!(personality(0x4_0000), ALLOWED, "{upper:#x}");
        assert_eq!(personality(0xffff_ffff), ALLOWED, "{upper:#x}");
        let new_user = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
        assert_ne!(
            judge(&programs, libc::SYS_clone, &[new_user | upper]),
            ALLOWED
        );
        assert_eq!(judge(&programs, libc::SYS_clone, &[upper]), ALLOWED);
    }
}

#[test]
fn no_profile_lets_through_the_numbers_of_another_architecture() {
    let profile = |text: &str| serde_json::from_str::<Profile>(text).unwrap().compile();
    let denies = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO"}, {"names": ["ptrace"], "action": "SCMP_ACT_KILL"}]}"#;
    let allows = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read", "mount"], "action": "SCMP_ACT_ALLOW"}]}"#;
    let x32 = i64::from(X32);
    for programs in [
        profile(denies).unwrap(),
        profile(allows).unwrap(),
        compile_default(&[], false).unwrap(),
        vec![holder().unwrap()],
    ] {
        for number in [libc::SYS_mount, libc::SYS_read, libc::SYS_ptrace] {
            for args in [&[][..], &[7, 7, 7]] {
                assert_ne!(judge(&programs, number | x32, args), ALLOWED, "{number}");
            }
        }
        assert_ne!(judge(&programs, i64::from(u32::MAX), &[]), ALLOWED);
    }
    let programs = profile(denies).unwrap();
    assert_eq!(judge(&programs, libc::SYS_read, &[]), ALLOWED);
    assert_ne!(judge(&programs, libc::SYS_mount, &[]), ALLOWED);
}
