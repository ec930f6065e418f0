//! nginx and HAProxy as plain reverse proxies: one worker, kept connections to the engine, no buffering of answers, no log.
//!
//! Both send everything to the one engine there is: they route by a constant, where Hostler reads the body.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

/// nginx's command line.
pub fn nginx(dir: &Path, port: u16, engine: &str, log: bool) -> Result<Command> {
    let server = if engine.starts_with('/') { format!("unix:{engine}") } else { engine.to_owned() };
    let access = if log { format!("{}/access.log", dir.display()) } else { "off".to_owned() };
    let (d, file) = (dir.display(), dir.join("nginx.conf"));
    let text = format!(
        "daemon off;\nmaster_process on;\nworker_processes 1;\nworker_rlimit_nofile 20000;\n\
         pid {d}/nginx.pid;\nerror_log {d}/error.log crit;\nuser root;\n\
         events {{ worker_connections 19000; }}\n\
         http {{\n access_log {access};\n keepalive_requests 100000000;\n client_max_body_size 64m;\n\
         client_body_temp_path {d}/b;\n proxy_temp_path {d}/p;\n fastcgi_temp_path {d}/f;\n\
         uwsgi_temp_path {d}/u;\n scgi_temp_path {d}/s;\n tcp_nodelay on;\n\
         upstream engine {{ server {server}; keepalive 1024; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{port} backlog=4096;\n location / {{\n\
         proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_buffering off; proxy_read_timeout 3600s; }} }} }}\n"
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir).arg("-c").arg(file);
    Ok(command)
}

/// HAProxy's command line.
pub fn haproxy(dir: &Path, port: u16, engine: &str) -> Result<Command> {
    let server = if engine.starts_with('/') { format!("unix@{engine}") } else { engine.to_owned() };
    let file = dir.join("haproxy.cfg");
    let text = format!(
        "global\n nbthread 1\n maxconn 9000\n\ndefaults\n mode http\n timeout connect 10s\n\
         timeout client 1h\n timeout server 1h\n http-reuse always\n\n\
         listen front\n bind 127.0.0.1:{port} backlog 4096\n server engine {server}\n"
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}
