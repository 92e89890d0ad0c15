use std::fs;
use std::os::unix::fs::symlink;

use gantry_cri::runtime::Propagation;

use super::*;
use crate::spec::tests::container;

fn mount(source: &Path, target: &str) -> BindMount {
    BindMount {
        source: source.to_owned(),
        target: PathBuf::from(target),
        read_only: false,
        propagation: Propagation::None,
    }
}

#[test]
fn an_image_whose_own_directories_are_links_is_refused_by_name() {
    for name in OWN {
        let image = tempfile::tempdir().unwrap();
        let spec = container(image.path());
        check_mount_points(&spec).unwrap();
        fs::create_dir(image.path().join(name)).unwrap();
        check_mount_points(&spec).unwrap();
        fs::remove_dir(image.path().join(name)).unwrap();
        for target in ["/tmp", "nowhere", "/"] {
            symlink(target, image.path().join(name)).unwrap();
            let refused = check_mount_points(&spec).unwrap_err().to_string();
            assert!(refused.contains(&format!("image's /{name} ")), "{refused}");
            fs::remove_file(image.path().join(name)).unwrap();
        }
    }
}

#[test]
fn nothing_is_mounted_where_libcontainer_works_by_the_hosts_paths() {
    let image = tempfile::tempdir().unwrap();
    let inside = |path: &str| image.path().join(path);
    fs::create_dir_all(inside("a/b")).unwrap();
    symlink("/", inside("root")).unwrap();
    symlink("../../../..", inside("a/b/up")).unwrap();
    symlink("root/dev", inside("devices")).unwrap();
    symlink("loop", inside("loop")).unwrap();
    let volume = tempfile::tempdir().unwrap();
    symlink("..", volume.path().join("out")).unwrap();
    symlink("/dev", volume.path().join("dev")).unwrap();
    for (targets, allowed) in [
        (&["/"][..], false),
        (&["//."], false),
        (&["/data/.."], false),
        (&["/root"], false),
        (&["/root/root/."], false),
        (&["/a/b/up"], false),
        (&["/dev"], false),
        (&["/dev/"], false),
        (&["/dev/shm/.."], false),
        (&["/devices"], false),
        (&["/a/../root/dev"], false),
        (&["/loop"], false),
        (&["/loop/x"], false),
        (&["/data", "/data/out"], false),
        (&["/data", "/data/dev"], false),
        (&["/a", "/root/a/out"], false),
        // What is mounted hides what the image has there.
        (&["/a", "/a/b/up"], true),
        (&["/root/a/b", "/a", "/a/b/up"], true),
        (&["/root/a/b", "/a", "/a/out"], false),
        (&["/data", "/data/more"], true),
        (&["/devices/disk"], true),
        (&["/dev/shm"], true),
        (&["/sys"], true),
        (&["/sys", "/sys/out"], false),
        (&["/sys/fs/cgroup"], true),
        (&["/root/data"], true),
        (&["/var/run/secrets"], true),
    ] {
        let mut spec = container(image.path());
        let mounts = targets.iter().map(|target| mount(volume.path(), target));
        spec.mounts = mounts.collect();
        assert_eq!(check_mount_points(&spec).is_ok(), allowed, "{targets:?}");
    }
}

#[test]
fn links_that_make_a_long_way_of_a_short_one_are_not_followed_to_its_end() {
    let image = tempfile::tempdir().unwrap();
    let detour = "a/../".repeat(400);
    for number in 0..20 {
        let link = image.path().join(format!("way-{number}"));
        symlink(format!("{detour}way-{}", number + 1), link).unwrap();
    }
    let mut spec = container(image.path());
    let mut placed = |target: &str| {
        spec.mounts = vec![mount(image.path(), target)];
        check_mount_points(&spec)
    };
    let found = placed("/way-19").unwrap();
    assert_eq!(found.mounts[0].target, Path::new("/way-20"));
    placed("/way-0").unwrap_err();
}

#[test]
fn only_what_speaks_of_processes_is_mounted_in_their_file_system() {
    let image = tempfile::tempdir().unwrap();
    symlink("/proc/self/root", image.path().join("self")).unwrap();
    let volume = tempfile::tempdir().unwrap();
    for (source, target, allowed) in [
        (Path::new("/proc"), "/proc", true),
        (volume.path(), "/proc", false),
        (volume.path(), "/proc/self/attr", false),
        (volume.path(), "/proc/meminfo", true),
        (volume.path(), "/proc/meminfo/x", false),
        (volume.path(), "/self", false),
        (volume.path(), "/processes", true),
    ] {
        let mut spec = container(image.path());
        spec.mounts = vec![mount(source, target)];
        assert_eq!(check_mount_points(&spec).is_ok(), allowed, "{target}");
    }
    let mut spec = container(image.path());
    spec.termination_message_path = PathBuf::from("/proc/self/attr/current");
    assert!(check_mount_points(&spec).is_err());
}

/// Where mounts at these targets, each of the directory beside it, come to lie; their places are made.
fn lies(
    image: &Path,
    mounts: &[(&Path, &str)],
    termination: &str,
) -> io::Result<(Vec<PathBuf>, PathBuf)> {
    let mut spec = container(image);
    let mounts = mounts.iter().map(|(source, target)| mount(source, target));
    spec.mounts = mounts.collect();
    spec.termination_message_path = PathBuf::from(termination);
    let placed = check_mount_points(&spec)?;
    make_mount_points(&spec, &placed, 0)?;
    let targets = placed.mounts.into_iter().map(|mount| mount.target);
    Ok((targets.collect(), placed.termination_message_path))
}

#[test]
fn links_that_lead_to_nothing_are_followed_inside_the_root() {
    let image = tempfile::tempdir().unwrap();
    let inside = |path: &str| image.path().join(path);
    fs::create_dir_all(inside("etc")).unwrap();
    for (link, target) in [
        ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        ("etc/hosts", "/run/hosts"),
        ("etc/hostname", "../../../../../../above/the/root"),
        ("data", "/mnt/data"),
        ("one", "two"),
        ("two", "/three"),
        ("three", "./four/../five"),
        ("log", "/var/log/message"),
    ] {
        symlink(target, inside(link)).unwrap();
    }
    let volume = tempfile::tempdir().unwrap();
    symlink("/cache/deep", volume.path().join("elsewhere")).unwrap();
    let other = tempfile::tempdir().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let (file, volume, other) = (file.path(), volume.path(), other.path());
    for (mounts, expected, made) in [
        (
            &[(file, "/etc/resolv.conf")][..],
            "/run/systemd/resolve/stub-resolv.conf",
            inside("run/systemd/resolve/stub-resolv.conf"),
        ),
        (&[(file, "/etc/hosts")], "/run/hosts", inside("run/hosts")),
        (
            &[(file, "/etc/hostname")],
            "/above/the/root",
            inside("above/the/root"),
        ),
        (&[(volume, "/data")], "/mnt/data", inside("mnt/data")),
        (
            &[(volume, "/data/below/it")],
            "/mnt/data/below/it",
            inside("mnt/data/below/it"),
        ),
        (&[(volume, "/one")], "/five", inside("five")),
        (&[(file, "/one/file")], "/five/file", inside("five/file")),
        // From one volume into another, and into the image where that is not mounted.
        (
            &[(volume, "/v"), (other, "/cache"), (file, "/v/elsewhere/x")],
            "/cache/deep/x",
            other.join("deep/x"),
        ),
        (
            &[(volume, "/v"), (other, "/v/elsewhere")],
            "/cache/deep",
            inside("cache/deep"),
        ),
    ] {
        let (targets, _) = lies(image.path(), mounts, "/dev/termination-log").unwrap();
        assert_eq!(targets.last().unwrap(), Path::new(expected));
        let is_directory = mounts.last().unwrap().0.is_dir();
        assert_eq!(made.is_dir(), is_directory, "{expected}");
        assert_eq!(made.is_file(), !is_directory, "{expected}");
    }
    let (_, log) = lies(image.path(), &[], "/log").unwrap();
    assert_eq!(log, Path::new("/var/log/message"));
    assert!(inside("var/log/message").is_file());
    for link in ["etc/resolv.conf", "data", "one"] {
        assert!(inside(link).is_symlink(), "{link} is as it was");
    }
}

#[test]
fn what_cannot_be_mounted_is_refused_by_its_path() {
    let image = tempfile::tempdir().unwrap();
    let inside = |path: &str| image.path().join(path);
    fs::create_dir(inside("etc")).unwrap();
    fs::write(inside("etc/passwd"), "kept").unwrap();
    symlink("there", inside("etc/here")).unwrap();
    symlink("here", inside("etc/there")).unwrap();
    let volume = tempfile::tempdir().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let long = format!("/{}", "x".repeat(256));
    let (file, volume) = (file.path(), volume.path());
    for (mounts, named) in [
        (&[(file, "/etc/here")][..], "/etc/here"),
        (&[(volume, "/etc/here/below")], "/etc/here/below"),
        (&[(volume, "/etc/passwd")], "/etc/passwd"),
        (&[(volume, "/etc/passwd/below")], "/etc/passwd/below"),
        (&[(file, "/etc")], "/etc"),
        (&[(volume, "/v"), (file, "/v")], "/v"),
        (&[(file, "/f"), (volume, "/f/below")], "/f/below"),
        (&[(file, long.as_str())], long.as_str()),
        (&[(Path::new("/no/such/source"), "/v")], "/no/such/source"),
    ] {
        let refused = lies(image.path(), mounts, "/dev/termination-log");
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(named), "{named}: {refused}");
    }
    for termination in ["/etc/here", "/etc", "/etc/passwd/below"] {
        let refused = lies(image.path(), &[], termination).unwrap_err();
        assert!(refused.to_string().contains(termination), "{refused}");
    }
    assert_eq!(fs::read(inside("etc/passwd")).unwrap(), b"kept");
    // Nothing is made in what the container cannot write to.
    let mut spec = container(image.path());
    spec.mounts = vec![mount(volume, "/v"), mount(file, "/v/below")];
    spec.mounts[0].read_only = true;
    let placed = check_mount_points(&spec).unwrap();
    let refused = make_mount_points(&spec, &placed, 0).unwrap_err();
    assert!(refused.to_string().contains("/v/below"), "{refused}");
    assert!(!volume.join("below").exists());
    fs::write(volume.join("below"), "").unwrap();
    make_mount_points(&spec, &placed, 0).unwrap();
}

fn executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_command_is_looked_for_through_links_between_the_image_and_its_volumes() {
    let (image, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    executable(&image.path().join("usr/bin/python3"));
    executable(&volume.path().join("tools/tool"));
    symlink("/usr/bin/python3", volume.path().join("python")).unwrap();
    symlink("../../work/tools/tool", image.path().join("usr/bin/tool")).unwrap();
    symlink("/nowhere", volume.path().join("broken")).unwrap();
    let mut spec = container(image.path());
    spec.env = vec!["PATH=/usr/bin".to_owned()];
    spec.mounts = vec![mount(volume.path(), "/work")];
    let checked = |command: &str| {
        let mut spec = spec.clone();
        spec.args = vec![command.to_owned()];
        check_command(&spec).map_err(|error| error.to_string())
    };
    for found in ["/work/python", "/usr/bin/tool", "tool", "/proc/self/exe"] {
        checked(found).unwrap();
    }
    for missing in ["/work/broken", "/work/missing", "missing", "/work"] {
        checked(missing).unwrap_err();
    }
}

#[test]
fn the_working_directory_is_made_in_a_volume_too() {
    let (image, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    symlink("/data", image.path().join("link")).unwrap();
    symlink("/", volume.path().join("out")).unwrap();
    let made = |cwd: &str, read_only: bool| {
        let mut spec = container(image.path());
        let volume = mount(volume.path(), "/data");
        spec.mounts = vec![BindMount {
            read_only,
            ..volume
        }];
        spec.cwd = PathBuf::from(cwd);
        ensure_directory(&spec, 0).unwrap();
    };
    made("/data/a/b", false);
    made("/link/c", false);
    made("/data/out/d", false);
    made("/data/e", true);
    made("/dev/f", false);
    let exists = |root: &Path, path: &str| root.join(path).is_dir();
    assert!(exists(volume.path(), "a/b") && exists(volume.path(), "c"));
    assert!(exists(image.path(), "d"), "links are the container's");
    assert!(!exists(volume.path(), "e") && !exists(image.path(), "dev"));
}
