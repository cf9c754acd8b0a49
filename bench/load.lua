-- wrk's side of bench/load.py: arguments are the body's content type, its file and, where requests go round over several paths,
-- those paths; the result is one line of JSON, times in ms.
function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = args[1]
  local file = assert(io.open(args[2], "rb"))
  wrk.body = file:read("*a")
  file:close()
  if args[3] then
    go_round({unpack(args, 3)})
  end
end

-- wrk asks a global `request`, where there is one, for every request that it sends.
function go_round(paths)
  local requests, turn = {}, 0
  for number, path in ipairs(paths) do
    requests[number] = wrk.format(nil, path)
  end
  request = function()
    turn = turn % #requests + 1
    return requests[turn]
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "status_errors": %d, "socket_errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
