//! Hostile clients, for `make attack`: see [`gantry_e2e::siege`].

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    gantry_e2e::siege::run(&arguments).await
}
