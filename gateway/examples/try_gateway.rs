//! try
#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).init();
    let a: Vec<String> = std::env::args().collect();
    let text = format!("listen = \"127.0.0.1:{}\"\nendpoints = [\"{}\"]\ndata_dir = \"{}\"\n[[rules]]\nfrom = \"127.0.0.1\"\nmethod = \"trust\"\n", a[1], a[2], a[3]);
    let config: evenkeel_gateway::GatewayConfig = toml::from_str(&text).expect("config");
    println!("{:?}", evenkeel_gateway::run(config, std::future::pending()).await);
}
