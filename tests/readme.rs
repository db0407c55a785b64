//! What the README says, held against what is there.

const README: &str = include_str!("../README.md");

#[test]
fn its_program_is_the_example() {
    let example = include_str!("../examples/quickstart.rs").replace("\r\n", "\n");
    let (_, program) = example.split_once("\n\n").expect("a line about the file comes first");
    assert!(README.replace("\r\n", "\n").contains(&format!("```rust\n{program}```")), "{program}");
}

#[test]
fn its_links_lead_somewhere() {
    let mut links = 0;
    for link in README.split("](").skip(1) {
        let (path, _) = link.split_once(')').expect("a link ends");
        if !path.starts_with("http") {
            links += 1;
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            assert!(path.exists(), "{}", path.display());
        }
    }
    assert!(links > 0);
}
