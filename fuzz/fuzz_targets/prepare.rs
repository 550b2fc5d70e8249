#![no_main]

midtread_fuzz::target!(midtread_fuzz::targets::prepare);
