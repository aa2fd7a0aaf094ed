module gofileserver

go 1.19
