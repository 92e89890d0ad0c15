//! `gantry-power-cuts BASE ROUNDS [SEED]`: takes the power from a machine while it works, again and again, and looks each time
//! whether everything that was acknowledged is there after the next boot. Ends with failure at the first loss.
//!
//! The machine is emulated, with a stock kernel and a disk of its own whose cache is lost with the power ([`disk`]). In it
//! a cluster runs. Acknowledged are: objects to clients outside the machine ([`objects`]); imports of images and writes of a
//! pod to its volume over a serial line, which leaves the machine at once. After each boot the file system is checked,
//! every file of every image is compared with its hash, the volume is read, and the cluster must start the pod again from
//! what its agent kept. Some cuts come while the machine still recovers from the one before.
//!
//! Run by `make power-cuts`, which makes BASE with `e2e/vm/base.sh`.

mod disk;
mod machine;
mod objects;
mod random;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use disk::Disk;
use machine::{Machine, Parts};
use objects::Objects;
use random::Random;

/// How long the machine may take for anything, on a busy machine that emulates it.
const DEADLINE: Duration = Duration::from_secs(180);
const DISK_BYTES: u64 = 2 << 30;
/// One cut in so many comes during the recovery.
const EARLY: usize = 6;
/// The longest that writers go on in a round, in milliseconds.
const LONGEST: usize = 5000;
/// After that, the disk takes fewer writes than this before it is silent,
const MOST_WRITES: usize = 40;
/// and so long later the machine is killed.
const DYING: Duration = Duration::from_millis(1500);

/// What the machine said it had made durable, and what it found after a boot.
#[derive(Clone, Debug, Default)]
struct Reported {
    images: BTreeSet<u64>,
    volume: u64,
    kubeconfig: Option<String>,
}

impl Reported {
    /// Takes a line of the report.
    fn hear(&mut self, line: &str) -> Result<()> {
        match line.split_once(' ') {
            Some(("image", number)) => {
                self.images.insert(number.parse()?);
            }
            Some(("volume", number)) => self.volume = self.volume.max(number.parse()?),
            Some(("kubeconfig", text)) => self.kubeconfig = Some(text.to_owned()),
            Some(("damage", what)) => bail!("damaged: {what}"),
            _ => {}
        }
        Ok(())
    }

    /// Compares with what was found after a boot.
    fn verify(&self, found: &Self) -> Result<()> {
        let lost: Vec<_> = self.images.difference(&found.images).collect();
        ensure!(
            lost.is_empty(),
            "images that were acknowledged are gone: {lost:?}"
        );
        ensure!(
            found.volume >= self.volume,
            "the volume is at {}, {} was acknowledged",
            found.volume,
            self.volume
        );
        Ok(())
    }
}

struct Run {
    work: tempfile::TempDir,
    base: PathBuf,
    runtime: tokio::runtime::Runtime,
    disk: Disk,
    port: u16,
    random: Random,
    objects: Objects,
    reported: Reported,
    client: Option<Client>,
}

impl Run {
    fn new(base: PathBuf, seed: u64) -> Result<Self> {
        let work = tempfile::tempdir()?;
        let disk = work.path().join("disk");
        std::fs::File::create(&disk)?.set_len(DISK_BYTES)?;
        make_file_system(&disk, None)?;
        let payload = work.path().join("payload");
        std::fs::File::create(&payload)?.set_len(1 << 30)?;
        make_file_system(&payload, Some(&pack(work.path())?))?;
        // Free now, and soon taken by the emulator.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        Ok(Self {
            disk: Disk::open(&disk)?,
            work,
            base,
            runtime: tokio::runtime::Runtime::new()?,
            port,
            random: Random::new(seed),
            objects: Objects::default(),
            reported: Reported::default(),
            client: None,
        })
    }

    fn boot(&self, round: usize) -> Result<Machine> {
        let socket = self.work.path().join(format!("disk-{round}.sock"));
        self.disk.serve(&socket)?;
        Machine::start(&Parts {
            base: &self.base,
            payload: &self.work.path().join("payload"),
            disk: &socket,
            console: &self.work.path().join("console"),
            api_port: self.port,
        })
    }

    /// One boot, a look at everything, work, and a cut.
    fn round(&mut self, round: usize, last: bool) -> Result<String> {
        let began = Instant::now();
        let mut machine = self.boot(round)?;
        if round > 1 && !last && self.random.below(EARLY) == 0 {
            let after = Duration::from_millis(self.random.below(15_000) as u64);
            let mut found = Reported::default();
            machine.listen(after, |line| found.hear(line).map(|()| None::<()>))?;
            self.disk.die_after(self.random.below(MOST_WRITES));
            machine.listen(DYING, |line| found.hear(line).map(|()| None::<()>))?;
            return Ok(format!(
                "cut {:.1} s after power on, {}",
                after.as_secs_f64(),
                self.cut(machine)?
            ));
        }
        match self.look(&mut machine) {
            Ok(()) => {}
            Err(error) => {
                let console = std::fs::read_to_string(self.work.path().join("console"));
                let console = console.unwrap_or_default();
                let tail: Vec<_> = console.lines().rev().take(40).collect();
                let tail: Vec<_> = tail.into_iter().rev().collect();
                return Err(error.context(format!(
                    "the machine said:\n{}{}",
                    machine.said(),
                    tail.join("\n")
                )));
            }
        }
        let recovered = began.elapsed();
        if last {
            return Ok(format!("whole after {:.1} s", recovered.as_secs_f64()));
        }
        let (before, images) = (self.objects.acknowledged, self.reported.images.len());
        self.work(&mut machine)?;
        let cut = self.cut(machine)?;
        Ok(format!(
            "whole after {:.1} s; then {} objects, {} images acknowledged, the volume at {}; cut, {cut}",
            recovered.as_secs_f64(),
            self.objects.acknowledged - before,
            self.reported.images.len() - images,
            self.reported.volume
        ))
    }

    /// Whether everything that was acknowledged is there.
    fn look(&mut self, machine: &mut Machine) -> Result<()> {
        let mut found = Reported::default();
        let looked = machine.listen(DEADLINE, |line| {
            found.hear(line)?;
            Ok((line == "looked").then_some(()))
        })?;
        ensure!(looked.is_some(), "the machine did not boot");
        self.reported.verify(&found)?;
        if self.client.is_none() {
            let text = found.kubeconfig.context("no kubeconfig came")?;
            self.client = Some(self.runtime.block_on(client(&text, self.port))?);
        }
        let client = self.client.clone().context("a client")?;
        let reported = &mut self.reported;
        let objects = &mut self.objects;
        self.runtime.block_on(async {
            reachable(&client).await?;
            objects.verify(&client).await?;
            writing_pod(&client).await
        })?;
        // It writes again.
        let writes = machine.listen(DEADLINE, |line| {
            reported.hear(line)?;
            Ok(line.starts_with("volume ").then_some(()))
        })?;
        ensure!(
            writes.is_some(),
            "the pod does not write to its volume again"
        );
        Ok(())
    }

    /// Writers of all kinds, for a while.
    fn work(&mut self, machine: &mut Machine) -> Result<()> {
        let stop = CancellationToken::new();
        let client = self.client.clone().context("a client")?;
        let objects = std::mem::take(&mut self.objects);
        let mut random = Random::new(self.random.below(usize::MAX) as u64);
        let told = stop.clone();
        let writing = self
            .runtime
            .spawn(async move { objects.write(client, &mut random, told).await });
        let during = Duration::from_millis(500 + self.random.below(LONGEST) as u64);
        let reported = &mut self.reported;
        machine.listen(during, |line| reported.hear(line).map(|()| None::<()>))?;
        self.disk.die_after(self.random.below(MOST_WRITES));
        machine.listen(DYING, |line| reported.hear(line).map(|()| None::<()>))?;
        machine.kill()?;
        stop.cancel();
        self.objects = self.runtime.block_on(writing)?;
        Ok(())
    }

    fn cut(&mut self, machine: Machine) -> Result<String> {
        for line in machine.cut()? {
            // The last one may have been cut too.
            if line.starts_with("image ") || line.starts_with("volume ") {
                self.reported.hear(&line).ok();
            }
        }
        let lost = self.disk.cut(&mut self.random)?;
        Ok(format!(
            "{} of {} cached blocks lost",
            lost.lost,
            lost.lost + lost.kept
        ))
    }
}

/// A file system in a file, with the contents of a directory.
fn make_file_system(file: &Path, contents: Option<&Path>) -> Result<()> {
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F"]);
    if let Some(contents) = contents {
        command.arg("-d").arg(contents);
    }
    let status = command.arg(file).status().context("running mkfs.ext4")?;
    ensure!(status.success(), "mkfs.ext4 failed with {status}");
    Ok(())
}

/// The directory of what the machine runs.
fn pack(work: &Path) -> Result<PathBuf> {
    let directory = work.join("machine");
    std::fs::create_dir(&directory)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/power-cuts");
    std::fs::copy(&script, directory.join("init"))
        .with_context(|| format!("copying {}", script.display()))?;
    let stripped = Command::new("strip")
        .arg("-o")
        .arg(directory.join("gantry"))
        .arg(gantry_e2e::gantry()?)
        .status()
        .context("running strip")?;
    ensure!(stripped.success(), "strip failed with {stripped}");
    let busybox = std::fs::read("/bin/busybox").context("reading busybox-static's program")?;
    let tools = std::fs::File::create(directory.join("tools.tar"))?;
    gantry_demo::pack_tools(&busybox, tools)?;
    Ok(directory)
}

/// A client of the machine's API by its administrator's kubeconfig.
async fn client(encoded: &str, port: u16) -> Result<Client> {
    let mut kubeconfig = Kubeconfig::from_yaml(&encoded.replace('\t', "\n"))?;
    for cluster in &mut kubeconfig.clusters {
        if let Some(cluster) = &mut cluster.cluster {
            cluster.server = Some(format!("https://127.0.0.1:{port}"));
        }
    }
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn reachable(client: &Client) -> Result<()> {
    until("the API answers", async || {
        client.apiserver_version().await?;
        Ok(())
    })
    .await
}

/// The pod that writes to a volume: made once, and started again by what the agent and the cluster kept.
async fn writing_pod(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    // Records of nine bytes, each synced alone: a sync of everything would hide what others have forgotten to.
    let script = "cd /data; n=$(($(/bin/busybox stat -c %s numbers 2>/dev/null || echo 0) / 9)); while :; do \
        printf '%08d\\n' $((n + 1)) | /bin/busybox dd of=numbers bs=9 seek=$n conv=notrunc,fsync 2>/dev/null || exit 1; \
        n=$((n + 1)); echo $n; /bin/busybox usleep 50000; done";
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "writer"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "data", "emptyDir": {}}],
            "containers": [{
                "name": "main",
                "image": gantry_e2e::TOOLS,
                "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
        },
    }))?;
    until("the writing pod is there", async || {
        if pods.get_opt("writer").await?.is_none() {
            pods.create(&PostParams::default(), &pod).await?;
        }
        Ok(())
    })
    .await
}

async fn until(what: &str, attempt: impl AsyncFn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        ticks.tick().await;
        let answered = tokio::time::timeout(Duration::from_secs(10), attempt()).await;
        match answered {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if Instant::now() > deadline => {
                return Err(error.context(format!("waiting until {what}")));
            }
            Err(_) if Instant::now() > deadline => bail!("waiting until {what}"),
            _ => {}
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (base, rounds, seed) = match arguments.as_slice() {
        [base, rounds] => (base, rounds.parse()?, std::process::id().into()),
        [base, rounds, seed] => (base, rounds.parse::<usize>()?, seed.parse()?),
        _ => bail!("usage: gantry-power-cuts BASE ROUNDS [SEED]"),
    };
    let began = Instant::now();
    println!("{rounds} power cuts of {base}, seed {seed}");
    let mut run = Run::new(base.into(), seed)?;
    // The last boot only looks.
    for round in 1..=rounds + 1 {
        let said = run
            .round(round, round > rounds)
            .with_context(|| format!("round {round} of {rounds}, seed {seed}"))?;
        println!("{round:3} {said}");
    }
    println!(
        "{rounds} power cuts in {} s: {} objects, {} images and {} writes to a volume acknowledged, none lost",
        began.elapsed().as_secs(),
        run.objects.acknowledged,
        run.reported.images.len(),
        run.reported.volume
    );
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAIL {error:#}");
            ExitCode::FAILURE
        }
    }
}
