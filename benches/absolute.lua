-- Requests in absolute-form, as a forward proxy takes them: `wrk -s absolute.lua URL -- TARGET`. The rest is wrk.lua's.
init = function(args)
  local target = args[1]
  local url = "http://" .. target .. wrk.path
  wrk.headers["Host"] = target
  local text = wrk.format("GET", url)
  -- One text for all requests, as wrk itself does without a script.
  request = function() return text end
end
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "wrk.lua")
