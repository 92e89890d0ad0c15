//! How soon replicas follow load, from a step of it to pods that serve, on three machines; and that they stay where they are
//! while the load does.
//!
//! `GANTRY_REACTION=full` (`make reaction`) takes as many steps and minutes as figures need, and holds them to their budgets; a
//! run of all tests takes a few, beside whatever else the machine does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Load, LoadOptions, follow, until};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const LEAST: usize = 2;
const MOST: usize = 10;

/// How much is measured, and what is asked of it.
struct Extent {
    steps: usize,
    /// How long the load stays the same.
    steady: Duration,
    /// Factor of every budget.
    slack: u32,
}

impl Extent {
    fn of_environment() -> Self {
        match std::env::var("GANTRY_REACTION").as_deref() {
            Ok("full") => Self {
                steps: 20,
                steady: Duration::from_secs(300),
                slack: 1,
            },
            _ => Self {
                steps: 2,
                steady: Duration::from_secs(15),
                slack: 5,
            },
        }
    }
}

/// A number at each time that it changed.
#[derive(Default)]
struct Line(Mutex<Vec<(Instant, usize)>>);

impl Line {
    fn say(&self, number: usize) {
        let mut line = self.0.lock();
        if line.last().map(|(_, last)| *last) != Some(number) {
            line.push((Instant::now(), number));
        }
    }

    fn now(&self) -> usize {
        self.0.lock().last().map_or(0, |(_, number)| *number)
    }

    /// How long after a time it was first as large.
    fn reached(&self, since: Instant, number: usize) -> Option<Duration> {
        let line = self.0.lock();
        let mut later = line.iter().filter(|(at, _)| *at >= since);
        let (at, _) = later.find(|(_, reached)| *reached >= number)?;
        Some(*at - since)
    }

    /// How often it began to fall after it had risen, or to rise after it had fallen, since a time.
    fn turns(&self, since: Instant) -> usize {
        let line = self.0.lock();
        let numbers: Vec<usize> = line
            .iter()
            .filter(|(at, _)| *at >= since)
            .map(|(_, number)| *number)
            .collect();
        let rises: Vec<bool> = numbers.windows(2).map(|two| two[1] > two[0]).collect();
        rises.windows(2).filter(|two| two[0] != two[1]).count()
    }
}

/// What is seen of the Deployment, until it is dropped.
struct Seen {
    /// Endpoints of its Service that are ready.
    ready: Arc<Line>,
    /// Replicas that are wanted.
    wanted: Arc<Line>,
    _tasks: JoinSet<()>,
}

impl Seen {
    fn start(client: &kube::Client) -> Self {
        let (ready, wanted) = (Arc::new(Line::default()), Arc::new(Line::default()));
        let mut tasks = JoinSet::new();
        let line = ready.clone();
        let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
        tasks.spawn(follow(
            slices,
            "kubernetes.io/service-name=web",
            move |slice| {
                let endpoints = slice.endpoints.iter().flatten();
                let ready = endpoints.filter(|endpoint| {
                    let conditions = endpoint.conditions.as_ref();
                    conditions.and_then(|conditions| conditions.ready) == Some(true)
                });
                line.say(ready.count());
            },
        ));
        let line = wanted.clone();
        let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
        tasks.spawn(follow(deployments, "app=web", move |deployment| {
            let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
            line.say(
                replicas
                    .and_then(|count| count.try_into().ok())
                    .unwrap_or(0),
            );
        }));
        Self {
            ready,
            wanted,
            _tasks: tasks,
        }
    }

    async fn wait_ready(&self, count: usize) -> Result<()> {
        until("as many pods to serve", async || {
            let now = self.ready.now();
            ensure!(now == count, "{now} of {count}");
            Ok(())
        })
        .await
    }
}

/// The autoscaler of the web Deployment, which may grow at once.
fn autoscaler(metric: Value, scale_down_seconds: u32) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": LEAST, "maxReplicas": MOST, "metrics": [metric],
            "behavior": {
                "scaleUp": {"policies": [{"type": "Percent", "value": 900, "periodSeconds": 1}]},
                "scaleDown": {"stabilizationWindowSeconds": scale_down_seconds},
            },
        },
    })
}

/// Half of the CPU that pods ask for.
fn cpu() -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": 50});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

/// Five open connections per pod, as the Service has them.
fn connections() -> Value {
    json!({"type": "Object", "object": {
        "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "web"},
        "metric": {"name": "connections"}, "target": {"type": "AverageValue", "averageValue": "5"},
    }})
}

/// The time that so many percent of them took no longer than.
fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// A step of load and its end, again and again: from the step to the first new pod that serves, and to the last.
async fn steps(
    fleet: &Fleet,
    seen: &Seen,
    options: &LoadOptions,
    count: usize,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for _ in 0..count {
        seen.wait_ready(LEAST).await?;
        let began = Instant::now();
        let load = Load::begin(fleet, options.clone())?;
        seen.wait_ready(MOST).await?;
        first.extend(seen.ready.reached(began, LEAST + 1));
        last.extend(seen.ready.reached(began, MOST));
        let total = load.finish(fleet)?;
        ensure!(total.failed == 0, "{total:?}");
    }
    seen.wait_ready(LEAST).await?;
    Ok((first, last))
}

/// Takes the steps, and holds what they took to a budget: of the first new pod, and of all.
async fn measure(
    fleet: &Fleet,
    seen: &Seen,
    what: &str,
    options: LoadOptions,
    budgets: [Duration; 3],
) -> Result<()> {
    let extent = Extent::of_environment();
    let (mut first, mut last) = steps(fleet, seen, &options, extent.steps).await?;
    let seconds = |times: &mut [Duration], percent| percentile(times, percent).as_secs_f64();
    println!(
        "{what}, {} steps: first new pod of {LEAST} to {MOST} serves after {:.2} s (p50), {:.2} s (p99); all after {:.2} s (p50), {:.2} s (p99)",
        extent.steps,
        seconds(&mut first, 50),
        seconds(&mut first, 99),
        seconds(&mut last, 50),
        seconds(&mut last, 99),
    );
    let measured = [
        percentile(&mut first, 50),
        percentile(&mut first, 99),
        percentile(&mut last, 50),
    ];
    for (took, budget) in measured.into_iter().zip(budgets) {
        let budget = budget * extent.slack;
        ensure!(
            took <= budget,
            "{what}: {took:?} of {budget:?}: {first:?} {last:?}"
        );
    }
    Ok(())
}

/// The load stays as it is: once replicas are enough for it, none goes, and none more comes after one went.
async fn steady(fleet: &Fleet, seen: &Seen, what: &str, options: LoadOptions) -> Result<()> {
    let extent = Extent::of_environment();
    seen.wait_ready(LEAST).await?;
    let began = Instant::now();
    let load = Load::begin(fleet, options)?;
    until("replicas to follow", async || {
        ensure!(seen.wanted.now() > LEAST, "{}", seen.wanted.now());
        Ok(())
    })
    .await?;
    tokio::time::sleep_until((began + extent.steady).into()).await;
    let turns = seen.wanted.turns(began);
    println!(
        "{what}, {:.0} s: {} replicas, {turns} changes of direction",
        began.elapsed().as_secs_f64(),
        seen.wanted.now()
    );
    let total = load.finish(fleet)?;
    ensure!(total.failed == 0, "{total:?}");
    ensure!(turns == 0, "{:?}", seen.wanted.0.lock());
    Ok(())
}

#[test]
fn replicas_follow_load_and_stay_while_it_does() -> Result<()> {
    let fleet = Fleet::of_machines(1, 3)?;
    fleet.apply_web(3, |template| {
        let container = template.pointer_mut("/spec/containers/0");
        if let Some(Value::Object(container)) = container {
            let requests = json!({"requests": {"cpu": "20m"}});
            container.insert("resources".to_owned(), requests);
        }
    })?;
    let url = fleet.web_node_port("node-2")?;
    let burning = |rate| LoadOptions::new(format!("{url}burn?ms=1"), rate);
    let second = Duration::from_secs(1);
    let work = async || {
        let seen = Seen::start(&fleet.client("s1").await?);
        fleet.apply(&autoscaler(cpu(), 0))?;
        let budgets = [2 * second, 3 * second, 5 * second];
        measure(&fleet, &seen, "CPU", burning(150), budgets).await?;

        fleet.apply(&autoscaler(connections(), 0))?;
        let connected = LoadOptions {
            connections: 60,
            ..LoadOptions::keep_alive(&url, 300)
        };
        let budgets = [second * 3 / 2, 3 * second, 5 * second];
        measure(&fleet, &seen, "connections", connected, budgets).await?;

        fleet.apply(&autoscaler(cpu(), 300))?;
        steady(&fleet, &seen, "a constant load", burning(30)).await?;
        // What is wanted falls only after five minutes of less load.
        fleet.apply(&autoscaler(cpu(), 0))?;
        seen.wait_ready(LEAST).await?;
        fleet.apply(&autoscaler(cpu(), 300))?;
        let noisy = LoadOptions {
            noise: 20,
            ..burning(30)
        };
        steady(&fleet, &seen, "a load with 20 % of noise", noisy).await
    };
    let done = fleet.block_on(work);
    done.with_context(|| fleet.logs())
}
