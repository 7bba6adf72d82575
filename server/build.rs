//! Makes Rust of `proto/`: for the server, and once more, plain and with clients, for the tests in `tests/`.
//!
//! `protox` compiles the files, so no `protoc` has to be installed.

use std::path::PathBuf;

const FILES: [&str; 5] = ["kv.proto", "rpc.proto", "lock.proto", "election.proto", "health.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let files = protox::compile(FILES, ["proto"])?;

    // Stored records and events are sent as the bytes that they are, never built field by field. The services are written
    // out in `src/grpc`.
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .build_transport(false)
        .bytes(".")
        .extern_path(".mvccpb.KeyValue", "crate::proto::KeyValue")
        .extern_path(".mvccpb.Event", "crate::proto::Event")
        .compile_fds(files.clone())?;

    let tests = out.join("tests");
    std::fs::create_dir_all(&tests)?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .bytes(".")
        .out_dir(&tests)
        .compile_fds(files)?;
    Ok(())
}
