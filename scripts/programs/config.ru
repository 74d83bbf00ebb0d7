# A Rack application.
run ->(_env) { [200, { "content-type" => "text/plain" }, ["Handled by PID #{Process.pid}\n"]] }
