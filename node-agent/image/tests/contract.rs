//! What every [`Images`] must do, run on the real store and on the fake. Needs root (overlay mounts).

use std::path::Path;

use gantry_image::{FakeImages, ImageConfig, ImageError, ImageStore, ImageStoreConfig, Images};

const REFERENCE: &str = "gantry.local/web:v1";

/// `image` is present under [`REFERENCE`] when this starts.
async fn contract(images: &dyn Images) {
    let image = images.find(REFERENCE).await.expect("present");
    assert_eq!(images.find(&image.id).await.as_ref(), Some(&image));
    assert_eq!(
        images.list().await.expect("lists"),
        std::slice::from_ref(&image)
    );
    assert_eq!(images.find("gantry.local/other:v1").await, None);

    let first = images
        .mount_rootfs(&image.id, "pod-a_web_0", None)
        .await
        .expect("mounts");
    let again = images
        .mount_rootfs(&image.id, "pod-a_web_0", None)
        .await
        .expect("is idempotent");
    assert_eq!(first, again);
    std::fs::write(first.join("written"), "by a").expect("writable");
    let volume = images.make_volume("pod-a_web_0", "/data", None).await;
    let volume = volume.expect("makes a volume");
    std::fs::write(volume.join("written"), "by a").expect("writable");
    let again = images.make_volume("pod-a_web_0", "/data", None).await;
    assert_eq!(again.expect("is idempotent"), volume);
    assert!(volume.join("written").exists());
    let unmounted = images.make_volume("pod-c_web_0", "/data", None).await;
    unmounted.expect_err("there is no such root file system");
    let second = images
        .mount_rootfs(&image.id, "pod-b_web_0", None)
        .await
        .expect("mounts");
    assert!(
        !second.join("written").exists(),
        "root file systems are separate"
    );
    assert!(matches!(
        images
            .mount_rootfs("sha256:unknown", "pod-c_web_0", None)
            .await,
        Err(ImageError::NotFound(_))
    ));

    assert_eq!(
        images.in_use().await.expect("lists"),
        [image.id.clone()].into()
    );
    for name in [REFERENCE, &image.id] {
        assert!(matches!(
            images.remove(name).await,
            Err(ImageError::InUse(_))
        ));
    }
    images
        .unmount_rootfs("pod-a_web_0")
        .await
        .expect("unmounts");
    images
        .unmount_rootfs("pod-a_web_0")
        .await
        .expect("is idempotent");
    images
        .unmount_rootfs("never-mounted")
        .await
        .expect("unknown keys are fine");
    assert!(!first.exists() && !volume.exists());
    images
        .unmount_rootfs("pod-b_web_0")
        .await
        .expect("unmounts");

    assert!(images.in_use().await.expect("lists").is_empty());
    images.remove(REFERENCE).await.expect("removes");
    assert_eq!(images.find(REFERENCE).await, None);
    assert!(matches!(
        images.remove(REFERENCE).await,
        Err(ImageError::NotFound(_))
    ));
    assert!(matches!(
        images.pull("Not/Valid", None, None).await,
        Err(ImageError::InvalidReference { .. })
    ));
}

fn demo_archive(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("web-v1.tar");
    let file = std::fs::File::create(&path).expect("a file");
    gantry_demo::pack("v1", file).expect("packs");
    path
}

async fn store(directory: &Path) -> ImageStore {
    ImageStore::open(ImageStoreConfig {
        data_dir: directory.join("images"),
    })
    .await
    .expect("opens")
}

#[tokio::test]
async fn the_real_store_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path()).await;
    let imported = images
        .import(&demo_archive(directory.path()), None)
        .await
        .expect("imports");
    assert_eq!(imported[0].tags, [REFERENCE]);
    assert_eq!(imported[0].config.entrypoint, ["/web"]);
    contract(&images).await;
    assert!(images.collect_garbage().await.expect("collects") > 0);
    assert_eq!(images.collect_garbage().await.expect("collects"), 0);
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = FakeImages::new(directory.path());
    images.offer(REFERENCE, ImageConfig::default());
    images.pull(REFERENCE, None, None).await.expect("pulls");
    contract(&images).await;
}

#[tokio::test]
async fn images_and_mounts_survive_the_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path()).await;
    let image = images
        .import(&demo_archive(directory.path()), None)
        .await
        .expect("imports")
        .remove(0);
    let root = images
        .mount_rootfs(&image.id, "pod_web_0", None)
        .await
        .expect("mounts");
    std::fs::write(root.join("written"), "before").expect("writable");
    std::fs::create_dir(directory.path().join("images/tmp/layer-99")).expect("a leftover");
    drop(images);

    let images = store(directory.path()).await;
    assert_eq!(
        images.list().await.expect("lists"),
        std::slice::from_ref(&image)
    );
    let again = images
        .mount_rootfs(&image.id, "pod_web_0", None)
        .await
        .expect("finds the mount");
    assert_eq!(
        std::fs::read_to_string(again.join("written")).expect("kept"),
        "before"
    );
    assert!(
        !directory.path().join("images/tmp/layer-99").exists(),
        "leftovers are removed"
    );
    images.unmount_rootfs("pod_web_0").await.expect("unmounts");
}

#[tokio::test]
async fn what_is_no_image_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path()).await;
    let whole = std::fs::read(demo_archive(directory.path())).expect("reads");
    let mut corrupt = whole.clone();
    let middle = corrupt.len() - 20_000;
    corrupt[middle] ^= 0xff;
    for (name, bytes) in [
        ("text", b"not an archive".to_vec()),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("corrupt", corrupt),
    ] {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        let error = images.import(&path, None).await.expect_err(name);
        assert!(
            matches!(
                error,
                ImageError::Archive { .. } | ImageError::Corrupt { .. }
            ),
            "{name}: {error}"
        );
        assert!(images.list().await.expect("lists").is_empty(), "{name}");
        let layers = directory.path().join("images/layers");
        assert_eq!(
            std::fs::read_dir(layers).expect("reads").count(),
            0,
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_collected_beside_a_transfer_without_harm() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = store(directory.path()).await;
    let (collector, runtime) = (images.clone(), tokio::runtime::Handle::current());
    let collected = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = collected.clone();
    let progress: gantry_image::ProgressSink = std::sync::Arc::new(move |event| {
        if matches!(event, gantry_image::Progress::Unpacked { .. }) {
            let freed = runtime.block_on(collector.collect_garbage());
            assert_eq!(freed.expect("collects"), 0, "a layer on its way is needed");
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let image = images
        .import(&demo_archive(directory.path()), Some(progress))
        .await
        .expect("imports")
        .remove(0);
    assert!(collected.load(std::sync::atomic::Ordering::Relaxed) > 0);
    let root = images
        .mount_rootfs(&image.id, "pod_web_0", None)
        .await
        .expect("mounts");
    assert!(root.join("web").exists());
    images.unmount_rootfs("pod_web_0").await.expect("unmounts");
}
