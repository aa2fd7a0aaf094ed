# inetd.pl - answers the requests on one connection with files, in Perl with FFI::Platypus:
#
#   perl inetd.pl DIR        standard input and output are the connection, as inetd or systemd's Accept=yes has it
#
# To try it: socat TCP-LISTEN:8001,reuseaddr,fork EXEC:'perl inetd.pl DIR'. Neither the length of a head nor the time for
# it is limited, and "/" is no file.
#
# SENDGATE_LIBRARY names the library if it isn't where the system looks for libraries.
use strict;
use warnings;
use FFI::Platypus 1.00;
use POSIX ();

use constant {REUSABLE => 1, TIMEOUT_MS => 60000};
my $ffi = FFI::Platypus->new(api => 1, lib => $ENV{SENDGATE_LIBRARY} // 'libsendgate.so.0');
$ffi->attach(sendgate_open => [qw(sint32 string uint32 opaque size_t sint32* opaque sint32*)] => 'sint32');
$ffi->attach(sendgate_respond_fd =>
    [qw(sint32 sint32 string uint32 string string uint32 uint32* uint32* uint64*)] => 'sint32');
my %types = (css => 'text/css', html => 'text/html', js => 'text/javascript', png => 'image/png', txt => 'text/plain');
@ARGV == 1 or die "usage: inetd.pl DIR\n";
my $directory = POSIX::open($ARGV[0], POSIX::O_RDONLY) or die "$ARGV[0]: $!\n";

sub refuse {
    print "HTTP/1.1 $_[0]\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    exit;
}

while (defined(my $line = <STDIN>)) {
    my ($method, $path, $minor) = $line =~ m{^([A-Z]+) /*([^ ?]*)\S* HTTP/1\.(\d)\r\n$} or refuse('400 Bad Request');
    $method =~ /^(GET|HEAD)$/ or refuse('405 Method Not Allowed');
    my $fields = '';
    while ((my $field = <STDIN> // exit) ne "\r\n") { # half a head is no request
        $fields .= $field;
    }
    $path =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge;
    my ($file, $connection) = (-1, 0);
    $path !~ /\0/ && sendgate_open($directory, $path, 0, undef, 0, \$file, undef, undef) == 0
        or refuse('404 Not Found');
    my ($kind) = map { $types{$_} // () } $path =~ /\.(\w+)$/;
    sendgate_respond_fd(0, $file, $method, $minor ? 11 : 10, $fields,
        'Content-Type: ' . ($kind // 'application/octet-stream') . "\r\n", TIMEOUT_MS, undef, \$connection, undef);
    POSIX::close($file);
    last if $connection != REUSABLE;
}
