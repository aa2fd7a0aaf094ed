-- inetd.lua - answers the requests on one connection with files, in LuaJIT:
--
--   luajit inetd.lua DIR        standard input and output are the connection, as inetd or systemd's Accept=yes has it
--
-- To try it: socat TCP-LISTEN:8001,reuseaddr,fork EXEC:'luajit inetd.lua DIR'. Neither the length of a head nor the time for
-- it is limited, and "/" is no file.
--
-- SENDGATE_LIBRARY names the library if it isn't where the system looks for libraries.
local ffi = require "ffi"
ffi.cdef [[
int open(const char *, int, ...);
int close(int);
int32_t sendgate_open(int32_t dir, const char *path, uint32_t flags, char *etag, size_t etag_cap, int32_t *fd,
                      void *rep, int32_t *sys_errno);
int32_t sendgate_respond_fd(int32_t sock, int32_t fd, const char *method, uint32_t version, const char *request_headers,
                            const char *response_headers, uint32_t timeout_ms, uint32_t *http_status,
                            uint32_t *connection, uint64_t *body_sent);
]]
local sendgate = ffi.load(os.getenv "SENDGATE_LIBRARY" or "libsendgate.so.0")
local REUSABLE, TIMEOUT_MS = 1, 60000
local types = {css = "text/css", html = "text/html", js = "text/javascript", png = "image/png", txt = "text/plain"}
local directory = arg[1] and ffi.C.open(arg[1], 0) or -1
if directory < 0 then
    io.stderr:write("usage: inetd.lua DIR\n")
    os.exit(2)
end
local file, connection = ffi.new "int32_t[1]", ffi.new "uint32_t[1]"

local function refuse(status)
    io.write("HTTP/1.1 ", status, "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    os.exit(0)
end

repeat
    local line = io.read() or os.exit(0)
    local method, path, minor = line:match "^(%u+) /*([^ ?]*)%S* HTTP/1%.(%d)\r$"
    if method ~= "GET" and method ~= "HEAD" then refuse(method and "405 Method Not Allowed" or "400 Bad Request") end
    local fields = {}
    repeat
        local field = io.read() or os.exit(0) -- half a head is no request
        fields[#fields + 1] = field .. "\n"
    until field == "\r"
    fields[#fields] = nil
    path = path:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)
    if path:find("\0", 1, true) or sendgate.sendgate_open(directory, path, 0, nil, 0, file, nil, nil) ~= 0 then
        refuse "404 Not Found"
    end
    local kind = types[path:match "%.(%w+)$"] or "application/octet-stream"
    sendgate.sendgate_respond_fd(0, file[0], method, minor == "1" and 11 or 10, table.concat(fields),
        "Content-Type: " .. kind .. "\r\n", TIMEOUT_MS, nil, connection, nil)
    ffi.C.close(file[0])
until connection[0] ~= REUSABLE
