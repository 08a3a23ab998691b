//! Programs that people use, through a forward listener: apt, git and Python, over HTTP and over TLS.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::proxy::Proxy;
use crate::common::{TempDir, need_packages, pattern_bytes, run};
use crate::forward::open;
use crate::real_clients::{Running, file_server};

/// Serves the files below a directory over TLS on a port that it prints.
const TLS_SERVER: &str = r#"
import http.server, ssl, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def __init__(self, *args):
        super().__init__(*args, directory=sys.argv[1])
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// Serves the git repositories below a directory for reading and writing on a port that it prints, over TLS if it is
/// given a certificate.
const GIT_SERVER: &str = r#"
import http.server, os, ssl, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args):
        pass
    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
    def do_GET(self):
        path, _, query = self.path.partition("?")
        body = self.body()
        environment = dict(os.environ, GIT_PROJECT_ROOT=sys.argv[1], GIT_HTTP_EXPORT_ALL="1", REMOTE_USER="t",
            REMOTE_ADDR="127.0.0.1", REQUEST_METHOD=self.command, PATH_INFO=path, QUERY_STRING=query,
            CONTENT_TYPE=self.headers.get("Content-Type", ""), CONTENT_LENGTH=str(len(body)),
            HTTP_CONTENT_ENCODING=self.headers.get("Content-Encoding", ""),
            GIT_PROTOCOL=self.headers.get("Git-Protocol", ""))
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, stdout=subprocess.PIPE)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = [line.split(": ", 1) for line in head.decode().split("\r\n")]
        status = [value for name, value in fields if name == "Status"]
        self.send_response(int(status[0].split()[0]) if status else 200)
        for name, value in fields:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    do_POST = do_GET
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// What pip does, with the same library underneath: requests one after the other, through the proxy of the environment.
const PYTHON_CLIENT: &str = r#"
import sys, urllib.request
for _ in range(3):
    with urllib.request.urlopen(sys.argv[1]) as answer:
        got = answer.read()
        assert got == open(sys.argv[2], "rb").read(), len(got)
request = urllib.request.Request(sys.argv[1] + ".missing", method="HEAD")
try:
    urllib.request.urlopen(request)
    sys.exit("found what is not there")
except urllib.error.HTTPError as error:
    assert error.code == 404, error
"#;

/// A certificate for `origin.test` with its key, made in `dir`. Without the key it is `cert.pem` there.
fn certificate(dir: &TempDir) -> PathBuf {
    let both = dir.join("both.pem");
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=origin.test"])
        .args(["-addext", "subjectAltName=DNS:origin.test", "-keyout"])
        .arg(dir.join("key.pem"))
        .arg("-out")
        .arg(dir.join("cert.pem")));
    let parts = ["key.pem", "cert.pem"].map(|name| std::fs::read_to_string(dir.join(name)).unwrap());
    std::fs::write(&both, parts.concat()).unwrap();
    both
}

/// A TLS server for the files below `root`, and its port. Its certificate, for `origin.test`, is in `dir`.
fn tls_server(dir: &TempDir, root: &Path) -> (Running, u16) {
    python_server(TLS_SERVER, &[root, &certificate(dir)])
}

/// A server in Python, and the port that it prints.
fn python_server(program: &str, arguments: &[&Path]) -> (Running, u16) {
    let mut server = Command::new("python3")
        .args(["-c", program])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Running(server), line.trim().parse().unwrap())
}

fn address(proxy: &Proxy) -> String {
    format!("http://{}", proxy.addr().inet())
}

/// A program that goes through `proxy`, whatever the environment of the tests says.
fn through(proxy: &Proxy, program: &str, certificate: &Path) -> Command {
    let mut command = Command::new(program);
    for name in ["http_proxy", "https_proxy", "HTTPS_PROXY"] {
        command.env(name, address(proxy));
    }
    for name in ["no_proxy", "NO_PROXY", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "all_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.env("SSL_CERT_FILE", certificate);
    command
}

#[test]
fn python_downloads_through_the_proxy() {
    need_packages(&["python3", "openssl"]);
    let (dir, root) = (TempDir::new(), TempDir::new());
    std::fs::write(root.join("data"), pattern_bytes(3_000_000)).unwrap();
    let plain = file_server(root.path());
    let (_server, port) = tls_server(&dir, root.path());
    let proxy = open().start();
    for url in [format!("http://origin.test:{}/data", plain.addr.port()), format!("https://origin.test:{port}/data")] {
        let mut client = through(&proxy, "python3", &dir.join("cert.pem"));
        run(client.args(["-c", PYTHON_CLIENT, &url]).arg(root.join("data")));
    }
}

#[test]
fn git_clones_through_the_proxy() {
    need_packages(&["git", "python3", "openssl"]);
    let (dir, root) = (TempDir::new(), TempDir::new());
    let proxy = open().start();
    let git = |args: &[&str]| {
        let mut command = through(&proxy, "git", &dir.join("cert.pem"));
        command.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]);
        command.arg("-c").arg(format!("http.sslCAInfo={}", dir.join("cert.pem").display()));
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
        run(command.current_dir(root.path()).args(args))
    };
    git(&["init", "-q", "work"]);
    for n in 0..20 {
        root.write(&format!("work/file{n}"), &format!("contents {n}\n").repeat(2000 * n));
    }
    git(&["-C", "work", "add", "."]);
    git(&["-C", "work", "commit", "-qm", "first"]);
    git(&["clone", "-q", "--bare", "work", "bare.git"]);
    git(&["-C", "bare.git", "update-server-info"]);
    let plain = file_server(root.path());
    let (_server, port) = tls_server(&dir, root.path());
    let tree = |name: &str| git(&["-C", name, "rev-parse", "HEAD^{tree}"]);
    for (copy, origin) in
        [("a", format!("http://origin.test:{}", plain.addr.port())), ("b", format!("https://origin.test:{port}"))]
    {
        git(&["clone", "-q", &format!("{origin}/bare.git"), copy]);
        assert_eq!(tree(copy), tree("work"), "{origin}");
    }
}

#[test]
fn git_pushes_through_the_proxy() {
    need_packages(&["git", "python3", "openssl"]);
    let (dir, root) = (TempDir::new(), TempDir::new());
    let proxy = open().start();
    let git = |args: &[&str]| {
        let mut command = through(&proxy, "git", &dir.join("cert.pem"));
        command.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]);
        // A body longer than this goes in chunks, and without a length.
        command.args(["-c", "http.postBuffer=65536", "-c", "core.compression=0"]);
        command.arg("-c").arg(format!("http.sslCAInfo={}", dir.join("cert.pem").display()));
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_TERMINAL_PROMPT", "0");
        run(command.current_dir(root.path()).args(args))
    };
    git(&["init", "-q", "work"]);
    std::fs::write(root.join("work/data"), pattern_bytes(1_500_000)).unwrap();
    git(&["-C", "work", "add", "."]);
    git(&["-C", "work", "commit", "-qm", "first"]);
    let both = certificate(&dir);
    let servers = [("http", None), ("https", Some(both.as_path()))];
    for (scheme, tls) in servers {
        let bare = format!("{scheme}.git");
        git(&["init", "-q", "--bare", &bare]);
        git(&["-C", &bare, "config", "http.receivepack", "true"]);
        let arguments: Vec<&Path> = std::iter::once(root.path()).chain(tls).collect();
        let (_server, port) = python_server(GIT_SERVER, &arguments);
        let url = format!("{scheme}://origin.test:{port}/{bare}");
        git(&["-C", "work", "push", "-q", &url, "HEAD:refs/heads/main"]);
        assert_eq!(git(&["-C", &bare, "rev-parse", "main"]), git(&["-C", "work", "rev-parse", "HEAD"]), "{scheme}");
        git(&["-C", &bare, "fsck", "--strict"]);
        git(&["clone", "-q", &url, &format!("copy-{scheme}")]);
    }
}

#[test]
fn apt_updates_and_downloads_through_the_proxy() {
    need_packages(&["apt", "dpkg", "python3", "openssl", "ca-certificates"]);
    let (dir, root) = (TempDir::new(), TempDir::new());
    std::fs::create_dir_all(root.join("package/DEBIAN")).unwrap();
    root.write(
        "package/DEBIAN/control",
        "Package: small\nVersion: 1.0\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n",
    );
    std::fs::write(root.join("package/data"), pattern_bytes(400_000)).unwrap();
    let name = "small_1.0_all.deb";
    // The defaults of what it is made with do not matter here.
    run(Command::new("dpkg-deb").args(["-Zgzip", "--build"]).arg(root.join("package")).arg(root.join(name)));
    let control = run(Command::new("dpkg-deb").arg("-f").arg(root.join(name)));
    let size = std::fs::metadata(root.join(name)).unwrap().len();
    let sum = |name: &str| {
        let said = run(Command::new("sha256sum").arg(root.join(name)));
        said.split(' ').next().unwrap().to_owned()
    };
    let listed = format!("{}\nFilename: {name}\nSize: {size}\nSHA256: {}\n\n", control.trim_end(), sum(name));
    root.write("Packages", &listed);
    root.write("Release", &format!("Suite: t\nSHA256:\n {} {} Packages\n", sum("Packages"), listed.len()));
    let plain = file_server(root.path());
    let (_server, port) = tls_server(&dir, root.path());
    let proxy = open().start();
    for origin in [format!("http://origin.test:{}", plain.addr.port()), format!("https://origin.test:{port}")] {
        let private = TempDir::new();
        for directory in ["lists/partial", "cache/archives/partial", "etc", "log"] {
            std::fs::create_dir_all(private.join(directory)).unwrap();
        }
        private.write("status", "");
        private.write("sources.list", &format!("deb [trusted=yes] {origin} ./\n"));
        let at = |name: &str| private.join(name).display().to_string();
        // Nothing of the machine's own apt is read or changed.
        let settings = format!(
            "#clear Acquire::http::Proxy; #clear Acquire::https::Proxy;\n\
             Dir::Etc \"{}\"; Dir::Etc::sourcelist \"{}\"; Dir::Etc::sourceparts \"-\"; Dir::State \"{}\";\n\
             Dir::State::lists \"{}\"; Dir::State::status \"{}\"; Dir::Cache \"{}\"; Dir::Log \"{}\";\n\
             Acquire::http::Proxy \"{proxy}\"; Acquire::https::Proxy \"{proxy}\"; Acquire::Retries \"0\";\n\
             Acquire::https::CAInfo \"{}\"; APT::Sandbox::User \"\"; APT::Update::Error-Mode \"any\";\n",
            at("etc"),
            at("sources.list"),
            at(""),
            at("lists"),
            at("status"),
            at("cache"),
            at("log"),
            dir.join("cert.pem").display(),
            proxy = address(&proxy),
        );
        let settings = private.write("apt.conf", &settings);
        let apt = |arguments: &[&str]| {
            let mut command = through(&proxy, "apt-get", &dir.join("cert.pem"));
            command.env("APT_CONFIG", &settings).current_dir(private.path());
            run(command.args(["-q"]).args(arguments))
        };
        apt(&["update"]);
        apt(&["download", "small"]);
        assert_eq!(std::fs::read(private.join(name)).unwrap(), std::fs::read(root.join(name)).unwrap(), "{origin}");
    }
}
