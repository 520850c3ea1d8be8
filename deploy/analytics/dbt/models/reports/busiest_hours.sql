{{ cdrelay.report("busiest_hours") }}
