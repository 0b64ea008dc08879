//! Compiles the schema in `idl/` with protox, so that no `protoc` is needed.

use prost_build::Config;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=idl");
    let descriptors = protox::compile(["hot.proto", "control.proto"], ["idl"])?;
    let mut config = Config::new();
    // Payload-like fields are shared with the receive buffer instead of copied.
    config.bytes(["."]);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
