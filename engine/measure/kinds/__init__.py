"""The measurements, one module each: request, rows, result, options, document, table. No torch here."""
