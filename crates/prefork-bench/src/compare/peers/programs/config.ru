# A Rack application that answers the paths of `prefork serve` that workloads use.
def fib(n) = n < 2 ? n : fib(n - 1) + fib(n - 2)

def answer(path)
  # Not computed once: Puma may load the application before it forks.
  return [200, "Handled by PID #{Process.pid}\n"] if path == '/'
  _, name, number = path.split('/', 3)
  return [404, "not found\n"] unless number&.match?(/\A\d{1,8}\z/)
  n = number.to_i
  case name
  when 'bytes' then [200, "\0" * n]
  when 'fib' then n <= 50 ? [200, "fib(#{n}) = #{fib(n)}\n"] : [404, "not found\n"]
  when 'sleep'
    sleep(n / 1000.0)
    [200, "slept for #{n} ms\n"]
  else [404, "not found\n"]
  end
end

run(lambda do |env|
  status, body = answer(env['PATH_INFO'])
  [status, { 'content-type' => 'text/plain; charset=utf-8', 'content-length' => body.bytesize.to_s }, [body]]
end)
